"""The tables of a long study: python examples/results_table.py OUT [OTHER ...] [--ours NAME,... --theirs NAME,...] [--page FILE NAME]

One row per target: clean accuracy and its drop, worst pair and worst case on seen and on held-out pairs, worst attack from the same
defence trained again, white box, verdict, price of training and of use, then the worst pair at the budget of each OTHER, a run of the
same targets under another threat, and by family of attack.
A held-out pair counts where it leaves the control at most half right. `--ours` and `--theirs` name the seeds of two defences, one
each, to be compared on the held-out pairs that count; `--controls` the undefended networks of the same seeds, whose clean accuracy ours is set
against.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pages import rate, renew, report_of, run

from firedoor import stats
from firedoor.intervals import Estimate
from firedoor.matrix import Matrix, open_matrix
from firedoor.report.words import megabytes
from firedoor.study import SAME_DEFENCE

PUBLIC = ("S0", "S1", "S2")
COUNTS = 0.5  # most that the control may have right


def shown(e: Estimate | None) -> str:
    return "not run" if e is None else f"{100 * e.value:.1f} ({100 * e.low:.0f} to {100 * e.high:.0f})"


def times(multiple: float | None) -> str:
    return "not measured" if multiple is None else f"{multiple:.1f} x"


def pairs(matrix: Matrix, target: str) -> list[tuple[str, str]]:
    """Transferred cells from sources that never asked the target, without nulls."""
    real = [a["name"] for a in matrix.meta["attacks"] if a["role"] not in ("null", "white box")]
    rungs = matrix.meta["rungs"]
    return [
        (s, a) for s in matrix.sources if s in rungs and rungs[s].get(target) in PUBLIC for a in real if has(matrix, s, a, target)
    ]


def has(matrix: Matrix, source: str, attack: str, target: str) -> bool:
    return matrix.right(source, attack, target) is not None


def held_out(matrix: Matrix) -> list[tuple[str, str]]:
    """Pairs of an unseen source or attack that leave the control at most half right."""
    control = matrix.meta["control"]
    seen = {f["name"] for kind in ("sources", "attacks") for f in matrix.meta[kind] if f["seen"]}
    new = [p for p in pairs(matrix, control) if not set(p) <= seen]
    return [p for p in new if float(matrix.right(*p, control).mean()) <= COUNTS]


def trained_again(matrix: Matrix, target: str) -> str:
    """The worst attack crafted on the same recipe with another seed (S3), which counts as no held-out pair."""
    attacks = [a["name"] for a in matrix.meta["attacks"] if has(matrix, SAME_DEFENCE, a["name"], target)]
    worst = stats.worst_pair(matrix, target, [(SAME_DEFENCE, a) for a in attacks])
    return f"{shown(worst[0])} {worst[1][1]}" if worst else "not run"


def spared(matrix: Matrix) -> list[str]:
    """Why targets have no attack from the same defence."""
    reasons = matrix.meta["reasons"]
    return sorted({why for key, why in reasons.items() if key.startswith(f"{SAME_DEFENCE}|*|")}) or [
        "there is no target without it"
    ]


def table(report: dict[str, Any], matrix: Matrix, others: list[tuple[str, Matrix]]) -> list[list[str]]:
    families = sorted({a["family"] for a in matrix.meta["attacks"] if a["role"] not in ("null", "white box")})
    of = {a["name"]: a["family"] for a in matrix.meta["attacks"]}
    counted = held_out(matrix)
    head = ["target", "clean", "clean drop", "worst pair, seen", "worst case, seen", f"worst of {len(counted)} held-out pairs"]
    head += [
        "worst case, held out",
        f"worst pair, {SAME_DEFENCE}",
        "white box",
        "verdict",
        "training",
        "inference",
        "memory of training, of 250 answers",
    ]
    head += [f"worst pair, {text}" for text, _ in others] + [f"worst pair, {family}" for family in families]
    rows = [head]
    for t in report["targets"]:
        name, drop = t["name"], t["clean_drop"]
        own = [p for p in counted if has(matrix, *p, name)]
        worst = stats.worst_pair(matrix, name, own)
        row = [
            name,
            rate(t["clean_accuracy"]),
            "control" if t["control"] else rate(drop),
            rate(t["worst_pair_seen"]),
            rate(t["worst_case_seen"]),
            f"{shown(worst[0])} {' x '.join(worst[1])}" if worst else "not run",
            shown(stats.worst_case(matrix, name, own)),
            trained_again(matrix, name),
            rate(t["white_box_accuracy"]),
            t["verdict"],
            times(t["train_multiple"]),
            times(t["inference_multiple"]),
            f"{megabytes(t.get('train_memory_bytes'))}, {megabytes(t.get('inference_memory_bytes'))}",
        ]
        for _, other in others:
            worst = stats.worst_pair(other, name, pairs(other, name)) if name in other.targets else None
            row.append(shown(worst[0]) if worst else "not run")
        for family in families:
            worst = stats.worst_pair(matrix, name, [p for p in pairs(matrix, name) if of[p[1]] == family])
            row.append(shown(worst[0]) if worst else "not run")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--ours", default="")
    parser.add_argument("--theirs", default="")
    parser.add_argument("--controls", default="")
    parser.add_argument("--page", nargs=2)
    options = parser.parse_args()
    if bool(options.ours) != bool(options.theirs):
        parser.error("--ours and --theirs go together: the seeds of two defences, one each")
    matrix = open_matrix(options.out / "matrix.nc")
    report = report_of(options.out)
    others = []
    for folder in options.others:
        threat = report_of(folder)["threat"]["text"]
        others.append((threat, open_matrix(folder / "matrix.nc")))
    head, *rows = table(report, matrix, others)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    counted = held_out(matrix)
    lines += ["", f"{report['threat']['text']}, {len(matrix.y)} images; right answers in %, with 95 % intervals."]
    lines += [f"Held-out pairs that count: {len(counted)}: " + ", ".join(" x ".join(p) for p in counted) + "."]
    lines += [f"Looks at held-out pairs: {report['provenance'].get('looks at held-out pairs', 'not counted')}."]
    lines += [f"Same defence: crafted on the same recipe with another seed; not run where {'; or '.join(spared(matrix))}."]
    if options.ours:
        ours, theirs = options.ours.split(","), options.theirs.split(",")
        gap = stats.ahead(matrix, ours, theirs, counted)
        lines += ["", f"Ahead by {shown(gap)} points on these checkpoints, seed by seed:"]
        for a, b in zip(ours, theirs, strict=True):
            lines.append(f"- {a} over {b}: {shown(stats.ahead(matrix, [a], [b], counted))}")
        lines += ["", "Clean accuracy lost, in points:"]
        for a, own in zip(
            ours, options.controls.split(",") if options.controls else [matrix.meta["control"]] * len(ours), strict=True
        ):
            lines.append(f"- {a}, against {own}: {shown(stats.clean_drop(matrix, a, own))}")
    text = "\n".join(lines) + "\n"
    if options.page:
        renew(Path(options.page[0]), options.page[1], text)
    else:
        print(text, end="")


if __name__ == "__main__":
    run(main)
