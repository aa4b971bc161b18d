"""What the verdict may see of a target, gathered from the matrix and its symptoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firedoor import stats
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom
from firedoor.symptoms import bookkeeping_signs, failed_at_home, gradient_signs, naive_attacks, own_rows, pairs_of
from firedoor.transfer_signs import transfer_signs
from firedoor.verdict import Evidence

__all__ = ["evidence_of", "own_pairs", "standing_cells", "transfer_pairs"]

TRANSFER_RUNGS = ("S0", "S1", "S2", "S3", "S4")


def transfer_pairs(
    matrix: Matrix, target: str, seen: bool | None = None, rungs: tuple[str, ...] = TRANSFER_RUNGS
) -> list[stats.Pair]:
    """The transferred cells that count: run, no nulls, not void."""
    found: list[stats.Pair] = matrix.remember(
        ("transfer pairs", target, seen, rungs),
        lambda: [p for p in pairs_of(matrix, target, rungs, seen) if failed_at_home(matrix, *p, target)[0] != "void"],
    )
    return found


def own_pairs(matrix: Matrix, target: str, naive: bool) -> list[stats.Pair]:
    """White-box cells: through relax, or (naive) the cross-entropy gradient of the target as it stands."""
    white = [a for a in matrix.meta["attacks"] if a["role"] == "white box"]
    if not naive:
        return [(row, a["name"]) for row in own_rows(matrix) for a in white]
    row = "itself, naive" if target in matrix.meta["relaxed"] else "itself"
    return [(row, name) for name in naive_attacks(matrix)]


def standing_cells(matrix: Matrix, target: str) -> list[stats.Pair]:
    """Transferred cells that count fully: neither void nor capped."""
    return [p for p in transfer_pairs(matrix, target) if not failed_at_home(matrix, *p, target)[0]]


def evidence_of(matrix: Matrix, target: str, live: Sequence[Symptom]) -> Evidence:
    """Losses with exact intervals, the signs of false security, and what the evidence is made of."""
    transfer, naive, relaxed = transfer_pairs(matrix, target), own_pairs(matrix, target, True), own_pairs(matrix, target, False)
    every_naive = [("itself, naive", a) for a in dict.fromkeys(a for _, a in relaxed)]
    nulls = [("no source", a["name"]) for a in matrix.meta["attacks"] if a["role"] == "null"]
    t, n, r, u = (_loss(matrix, target, p) for p in (transfer, naive, relaxed, transfer + relaxed + every_naive + nulls))
    read = (*gradient_signs(matrix, target), *bookkeeping_signs(matrix, target), *transfer_signs(matrix, target))
    symptoms = _weighed((*live, *read))
    facts = {a["name"]: a for a in matrix.meta["attacks"]}
    sources = {s["name"]: s for s in matrix.meta["sources"]}
    rungs = matrix.meta["rungs"]
    full = standing_cells(matrix, target)
    unseen = {s for s, _ in full if rungs[s][target] in ("S0", "S2") and s in sources and not sources[s]["seen"]}
    new = {(s, a) for s, a in full if not facts[a]["seen"]}
    families = {facts[a]["family"] for _, a in new} | {"ensemble source" for s, _ in new if sources.get(s, {}).get("ensemble")}
    target_facts = next(f for f in matrix.meta["targets"] if f["name"] == target)
    resubmitted = None
    if matrix.is_random(target) and transfer:
        found = [stats.worst_of_k(matrix, target, p, int(matrix.meta["draws"]), 20) for p in transfer]
        resubmitted = min((e for e in found if e is not None), key=lambda e: e.value, default=stats.wilson(0, 0))
    return Evidence(
        transfer=t,
        naive=n,
        relaxed=r,
        all=u,
        symptoms=symptoms,
        gradient_dead=any(s.id == "A7" and s.status == "fail" and s.name.endswith("as it stands") for s in live),
        worst_transfer=_worst(matrix, target, transfer),
        worst_own=_worst(matrix, target, relaxed + every_naive),
        rungs=frozenset(rungs[s][target] for s, _ in transfer),
        unseen_sources=len(unseen),
        architectures=len({sources[s]["architecture"] for s in unseen}),
        robust_sources=sum(sources[s]["family"] == "adversarial training" for s in unseen),
        unseen_attacks=len({a for _, a in new}),
        attack_families=len(families),
        stripped_needed=bool(target_facts["strippable"]),
        stripped_run=any(matrix.right("stripped", a, target) is not None for _, a in relaxed),
        failed_cells=len(_failed(matrix, target)),
        audit=frozenset(s.id for s in live if s.status != "not_run"),
        preflight_only=matrix.meta.get("audit") == "preflight",
        worst_of_k=resubmitted,
        missing_reasons=tuple(sorted({matrix.reason(s, a, target) for s in matrix.sources for a in matrix.attacks})[:5]),
    )


def _weighed(symptoms: tuple[Symptom, ...]) -> tuple[Symptom, ...]:
    """A query attack that beats the gradient (B13) shows a mask only where the gradient attack had done its best (B5, B11)."""
    starved = any(s.id in ("B5", "B11") and s.effect == "cap" and s.status != "pass" for s in symptoms)
    return tuple(replace(s, effect="cap") if starved and s.id == "B13" and s.effect == "mask" else s for s in symptoms)


def _loss(matrix: Matrix, target: str, pairs: Sequence[stats.Pair]) -> stats.Estimate | None:
    found = stats.loss(matrix, target, pairs)
    return found[0] if found else None


def _failed(matrix: Matrix, target: str) -> set[str]:
    """Cells that raised, and cells that were crafted but have no finite answer for some example: NaN must not pass for a gap."""
    raised = {key for key in matrix.meta["failed"] if key.endswith((f"|{target}", "|*"))}
    cells = ((s, a) for s in matrix.sources for a in matrix.attacks if matrix.right(s, a, target) is None)
    return raised | {f"{s}|{a}|{target}" for s, a in cells if matrix.home(s, a, target) is not None}


def _worst(matrix: Matrix, target: str, pairs: Sequence[stats.Pair]) -> str:
    rates = [(e.value, p) for p in pairs if (e := stats.transfer_rate(matrix, *p, target)) is not None]
    if not rates:
        return "nothing"
    value, (source, attack) = max(rates, key=lambda r: r[0])
    rung = matrix.meta["rungs"][source][target]
    return f"{attack} from {source!r} ({rung}) turns {value:.0%} of its right answers"
