"""The summary as rows of text: what every table of the report shows, in reading order.

Nothing is computed from labels here: rates, intervals and verdicts arrive in the summary and are only put into words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firedoor.report.words import NOT_MEASURED, Figure, megabytes, multiple, number, percent, points, visible

__all__ = [
    "ITSELF",
    "NAIVE",
    "VERDICTS",
    "Grid",
    "GridGroup",
    "GridRow",
    "Square",
    "TargetRow",
    "cell_rows",
    "extra_facts",
    "grid",
    "place",
    "reading",
    "target_rows",
]

Summary = Mapping[str, Any]

VERDICTS = ("ROBUST", "TRANSFER-ONLY", "MASKED", "EXPOSED", NOT_MEASURED.upper())
ITSELF, NAIVE = "itself", "itself, naive"
RELATIVE = {  # rows whose source is another model for every target, in reading order
    "no source": "changes that ask no model",
    "same defence": "S3: each target's own recipe with another seed",
    "stolen": "S4: a network trained on the target's answers",
    "stripped": "each target without its wrapper",
    ITSELF: "S5: each target attacked through its own defence",
    "itself, identity": "S5: each target attacked around its defence, by the gradient of the identity",
    NAIVE: "each target attacked by its gradient as it stands",
}
DETECTOR = {
    "false_positives": "Clean images rejected (false positives)",
    "lenient_worst_pair": "Worst pair, if rejecting an adversarial example counts as right",
    "lenient_white_box_accuracy": "White box, if rejecting an adversarial example counts as right",
}
SHADES = 20
EFFECTS = {"void": "leaves every rate", "cap": "may prove a break only", "mask": "sign of false security", "note": "printed only"}
STATUS_ORDER = {"fail": 0, "suspect": 1, "void": 2, "not_run": 3, "pass": 4}


@dataclass(frozen=True)
class TargetRow:
    """One target of the verdict table. `facts` are (name, text) pairs of its expander, `symptoms` its tests, worst first."""

    name: str
    family: str
    tags: tuple[str, ...]
    verdict: str
    rank: int
    figures: Mapping[str, Figure]
    worst_at: str
    reasons: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    symptoms: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Square:
    """One cell of the heat map: `kind` is its CSS class, `text` what stands in it, `note` what hovering or focus tells."""

    kind: str
    text: str
    note: str


@dataclass(frozen=True)
class GridRow:
    """One attack of a source against every target; None where the study planned nothing."""

    attack: str
    tags: tuple[str, ...]
    squares: tuple[Square | None, ...]


@dataclass(frozen=True)
class GridGroup:
    """All rows of one source."""

    source: str
    note: str
    rows: tuple[GridRow, ...]


@dataclass(frozen=True)
class Grid:
    """The matrix as drawn: target names and one group of rows per source."""

    targets: tuple[str, ...]
    groups: tuple[GridGroup, ...]


def reading(summary: Summary) -> str:
    """What the study found, in one sentence."""
    tested = [t for t in summary["targets"] if not t["exhibit"] and not t["control"]]
    controls = [t for t in summary["targets"] if t["control"]]
    exhibits = sum(bool(t["exhibit"]) for t in summary["targets"])
    counts = {v: sum(t["verdict"] == v for t in tested) for v in VERDICTS}
    found = ", ".join(f"{counts[v] or 'none'} {v}" for v in VERDICTS if counts[v] or v in VERDICTS[:2])
    aside = f" ({exhibits} exhibit{'s' * (exhibits != 1)} of false security not counted)" if exhibits else ""
    text = f"Of {len(tested)} target{'s' * (len(tested) != 1)} under test{aside}: {found}"
    measured = [t for t in tested if t["worst_pair"] and t["verdict"] in VERDICTS[:2]]
    if measured:
        best = max(measured, key=lambda t: t["worst_pair"]["value"])
        kept = percent(best["worst_pair"])
        text += f"; against its worst source and attack the best of the {' and '.join(VERDICTS[:2])} ones, {visible(best['name'])}, keeps {kept} right"
    undefended = [t for t in controls if t["worst_pair"]]
    if undefended:
        text += f"; the control ({visible(undefended[0]['name'])}) keeps {percent(undefended[0]['worst_pair'])}"
    return text + "."


def target_rows(summary: Summary) -> tuple[TargetRow, ...]:
    """The control first, then by verdict and worst pair, exhibits last."""

    def order(target: Summary) -> tuple[bool, bool, int, float]:
        worst = target["worst_pair"]["value"] if target["worst_pair"] else -1.0
        return not target["control"], bool(target["exhibit"]), _rank(target["verdict"]), -worst

    return tuple(_target(t) for t in sorted(summary["targets"], key=order))


def place(pair: Mapping[str, Any] | None) -> str:
    """Where a worst pair was found."""
    return f"{visible(pair['source'])}, {visible(pair['attack'])}" if pair else ""


def grid(summary: Summary) -> Grid:
    """Rows source + attack, columns targets. A source that is the target itself is one group, however many targets there are."""
    targets = [t["name"] for t in summary["targets"]]
    column = {name: i for i, name in enumerate(targets)}
    worst = {
        (t["worst_pair_at"]["source"], t["worst_pair_at"]["attack"], t["name"]) for t in summary["targets"] if t["worst_pair_at"]
    }
    attacks = {a["name"]: a for a in summary["attacks"]}
    sources = {s["name"]: s for s in summary["sources"]}
    place_of_source = {name: i for i, name in enumerate(sources)}
    place_of_attack = {name: i for i, name in enumerate(attacks)}
    rows: dict[tuple[str, str], list[Square | None]] = {}
    for cell in summary["cells"]:
        if cell["target"] not in column:
            continue
        squares = rows.setdefault((_row_source(cell), cell["attack"]), [None] * len(targets))
        is_worst = cell["rung"] != "naive" and (cell["source"], cell["attack"], cell["target"]) in worst
        squares[column[cell["target"]]] = _square(cell, is_worst)
    groups: dict[str, list[GridRow]] = {}
    last = len(rows) + len(sources)
    relative = {name: last + i for i, name in enumerate(RELATIVE, 1)}
    place_of_source = relative | place_of_source
    by_place = sorted(rows, key=lambda k: (place_of_source.get(k[0], last), k[0], place_of_attack.get(k[1], last), k[1]))
    for source, attack in by_place:
        about = attacks.get(attack)
        tags = _attack_tags(about) if about else ()
        groups.setdefault(source, []).append(GridRow(visible(attack), tags, tuple(rows[source, attack])))
    return Grid(
        tuple(visible(t) for t in targets),
        tuple(GridGroup(visible(s), _source_note(sources.get(s), s), tuple(r)) for s, r in groups.items()),
    )


def cell_rows(summary: Summary) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    """Every cell as text, by target: source, attack, rung, transfer, chained transfer, robust accuracy, remark."""
    by_target: dict[str, list[tuple[str, ...]]] = {t["name"]: [] for t in summary["targets"]}
    for c in summary["cells"]:
        remark = "; ".join(filter(None, (_state(c), "" if c["seen"] else "held out", visible(c["reason"] or ""))))
        rates = (percent(c[k]) for k in ("transfer_rate", "chained_transfer_rate", "robust_accuracy"))
        row = (visible(c["source"]), visible(c["attack"]), visible(c["rung"]), *map(str, rates), remark)
        by_target.setdefault(c["target"], []).append(row)
    return tuple((visible(name), tuple(rows)) for name, rows in by_target.items() if rows)


def extra_facts(mapping: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Provenance or costs as (name, text) pairs; what is nested is written as "a: b, c: d"."""
    return tuple((visible(k).replace("_", " "), _flat(v)) for k, v in (mapping or {}).items())


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(k)}: {_flat(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return number(value)


def _rank(verdict: str) -> int:
    return VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS)


def _target(t: Summary) -> TargetRow:
    figures = {
        k: percent(t[k])
        for k in (
            "clean_accuracy",
            "worst_pair",
            "worst_pair_seen",
            "worst_pair_held_out",
            "worst_pair_split",
            "worst_case",
            "worst_case_seen",
            "worst_case_held_out",
            "max_transfer_rate",
            "noise_floor",
            "white_box_accuracy",
            "naive_white_box_accuracy",
        )
    }
    figures["clean_drop"] = Figure("the control", "", None) if t["control"] and t["clean_drop"] is None else points(t["clean_drop"])
    figures["train_multiple"] = multiple(t["train_multiple"])
    figures["inference_multiple"] = multiple(t["inference_multiple"])
    figures["train_memory"] = megabytes(t.get("train_memory_bytes"))
    figures["inference_memory"] = megabytes(t.get("inference_memory_bytes"))
    tags = [name for name, on in (("control", t["control"]), ("exhibit", t["exhibit"]), ("random", t["stochastic"])) if on]
    symptoms = sorted(t["symptoms"], key=lambda s: (STATUS_ORDER.get(s["status"], 9), s["effect"] != "mask"))
    verdict = t["verdict"] if t["verdict"] in VERDICTS else VERDICTS[-1]
    return TargetRow(
        name=visible(t["name"]),
        family=visible(t["family"]),
        tags=tuple(tags),
        verdict=verdict,
        rank=_rank(verdict),
        figures=figures,
        worst_at=place(t["worst_pair_at"]),
        reasons=tuple(visible(r) for r in t["reasons"]),
        facts=_facts(t, figures),
        symptoms=tuple(_symptom(s) for s in symptoms),
    )


def _facts(t: Summary, figures: Mapping[str, Figure]) -> tuple[tuple[str, str], ...]:
    facts = [
        ("Highest rung of attacker tried", visible(t["rung_reached"] or "none")),
        ("Worst pair, seen sources and attacks", str(figures["worst_pair_seen"])),
        ("Worst pair, held out", str(figures["worst_pair_held_out"])),
        ("Worst pair, chosen on one half of the images and scored on the other", str(figures["worst_pair_split"])),
        ("Worst case, seen", str(figures["worst_case_seen"])),
        ("Worst case, held out", str(figures["worst_case_held_out"])),
    ]
    versus = t.get("against_control")
    if versus:
        facts.append(("Against the control, same pairs", str(points(versus["difference"]))))
        tests = f"p = {number(versus['p'])}, Holm p = {number(versus['p_holm'])}"
        facts.append(("Exact paired test", f"{tests}; {versus['gained']} images gained, {versus['lost']} lost"))
    for k, rate in (t.get("worst_of_k") or {}).items():
        facts.append((f"Right in all of {visible(k)} submissions", str(percent(rate))))
    for key, said in DETECTOR.items():
        if t.get("detector"):
            facts.append((said, str(percent(t["detector"][key]))))
    if t.get("train_seconds") is not None:
        facts.append(("Training time", f"{number(t['train_seconds'])} s"))
    for key, name in (("train_passes_multiple", "Training passes"), ("inference_passes_multiple", "Inference passes")):
        if t.get(key) is not None:
            facts.append((name, f"{multiple(t[key]).text} those of the control"))
    for key, name in (("train_memory_bytes", "Memory of training"), ("inference_memory_bytes", "Memory of answering 250 images")):
        if t.get(key) is not None:
            facts.append((name, megabytes(t[key]).text))
    return tuple(facts)


def _symptom(s: Summary) -> Mapping[str, str]:
    interval = f" ({number(s['low'])} to {number(s['high'])})" if s["low"] is not None and s["high"] is not None else ""
    return {
        "id": visible(s["id"]),
        "name": visible(s["name"]),
        "status": s["status"] if s["status"] in STATUS_ORDER else "not_run",
        "effect": EFFECTS.get(s["effect"], visible(s["effect"])),
        "value": f"{number(s['value'])}{interval}",
        "threshold": number(s["threshold"]),
        "n": number(s["n"]),
        "text": visible(s["text"] or ""),
    }


def _state(cell: Summary) -> str:
    if cell["void"]:
        return "void"
    if cell["transfer_rate"] is None:
        return "not run"
    return "capped" if cell["capped"] else ""


def _row_source(cell: Summary) -> str:
    if cell["source"] != cell["target"]:
        return str(cell["source"])
    return NAIVE if cell["rung"] == "naive" else ITSELF


def _square(cell: Summary, worst: bool) -> Square:
    state, rate = _state(cell), percent(cell["transfer_rate"])
    tail = [f"rung {visible(cell['rung'])}, {'seen' if cell['seen'] else 'held out'}"]
    if cell["reason"]:
        tail.append(visible(cell["reason"]))
    if state == "not run":
        return Square("none", "\u2013", "\n".join(["not run", *tail]))
    if state == "void":
        return Square("void", "void", "\n".join(["void: left out of every rate", *tail]))
    assert rate.value is not None
    lines = [f"transfer rate {rate}", f"robust accuracy {percent(cell['robust_accuracy'])}", *tail]
    kind = f"h{round(min(max(rate.value, 0.0), 1.0) * SHADES)}"
    if state == "capped":
        lines.append("capped: may prove a break, never a defence")
    if worst:
        kind += " worst"
        lines.append("the worst pair of this target")
    return Square(kind, rate.text.removesuffix(" %") + ("\u2020" if state == "capped" else ""), "\n".join(lines))


def _attack_tags(attack: Summary) -> tuple[str, ...]:
    if attack["null"]:
        return ("null",)
    return () if attack["seen"] else ("held out",)


def _source_note(source: Summary | None, name: str) -> str:
    if source is None:
        return RELATIVE.get(name, "")
    parts = [visible(source["rung"] or ""), "seen" if source["seen"] else "held out"]
    if source["clean_accuracy"]:
        parts.append(f"clean accuracy {percent(source['clean_accuracy']).text}")
    return ", ".join(filter(None, parts))
