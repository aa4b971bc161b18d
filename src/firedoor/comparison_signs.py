"""What the facts of a study say of its comparisons, read off the matrix: tests E8 to E10, E15 and E16 of one target."""

from __future__ import annotations

from firedoor.intervals import clopper_pearson
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom
from firedoor.symptoms import pairs_of

__all__ = ["denominators", "equal_effort", "equal_strength", "leakage", "selection"]

SHOWN = 20  # example ids that a symptom carries
NAMED = 5  # attacks or sources that a text names
APART = 0.1  # by how much less L2 one of two compared attacks may change
TRANSFER = ("S0", "S1", "S2", "S3", "S4")


def equal_strength(matrix: Matrix, target: str) -> Symptom:
    """E8: the realised change of attacks that are compared on one source.

    Read from the fact `strength`: "source|attack|*", or "source|attack|target", to {"l2": mean, "linf": largest, "saturated": share}.
    """
    strength: dict[str, dict[str, float]] = matrix.meta.get("strength", {})
    attacks = [a["name"] for a in matrix.meta["attacks"] if a["role"] == "transfer"]
    worst, text, cells = 0.0, "", list[dict[str, float]]()
    for source in (s for s in matrix.sources if matrix.meta["rungs"].get(s, {}).get(target) in TRANSFER):
        keys = {a: [f"{source}|{a}|{target}", f"{source}|{a}|*"] for a in attacks}
        found = {a: strength[k] for a, both in keys.items() for k in reversed(both) if k in strength}
        cells += found.values()
        most, least = (pick(found, key=lambda a: found[a]["l2"], default="") for pick in (max, min))
        less = 1 - found[least]["l2"] / found[most]["l2"] if found and found[most]["l2"] else 0.0
        if less > worst:
            worst, text = less, f"on {source!r}, {least} changes {less:.0%} less than {most} in L2; "
    if not cells:
        return _not_run("E8", "equal strength", "the size of the changes was not recorded")
    linf, saturated = [255 * c["linf"] for c in cells], max(c["saturated"] for c in cells)
    text += f"Linf {min(linf):.1f} to {max(linf):.1f} levels, at most {saturated:.0%} of pixels saturated"
    status, text = ("fail", f"not compared at equal strength: {text}") if worst > APART else ("pass", text)
    return Symptom("E8", "equal strength", "note", status, text, worst, APART, len(matrix.ids))


def equal_effort(matrix: Matrix) -> Symptom:
    """E9: the cost of the attacks that are compared is known, and so is shown."""
    facts, n = [a for a in matrix.meta["attacks"] if a["role"] == "transfer"], len(matrix.ids)
    if not facts:
        return _not_run("E9", "equal effort", "no transferred attack")
    silent = [a["name"] for a in facts if a.get("G") is None]
    if silent:
        return Symptom(
            "E9", "equal effort", "note", "fail", f"unequal compute: no cost known of {_named(silent)}", len(silent), 0, n
        )
    least, most = (pick(facts, key=lambda a: a["G"]) for pick in (min, max))
    text = f"gradients per image: {least['G']} ({least['name']}) to {most['G']} ({most['name']}); attacks are ranked at equal cost only"
    return Symptom("E9", "equal effort", "note", "pass", text, 0, 0, n)


def leakage(matrix: Matrix, target: str) -> list[Symptom]:
    """E10: evaluation images in a training set: of the target or its defence (a cap), of its sources (a note).

    Read from the fact `leaked`: "targets", "sources" and "defences", each from names to ids.
    """
    if "leaked" not in matrix.meta:
        return [_not_run("E10", "leakage", "training sets were not compared with the evaluation images")]
    leaked: dict[str, dict[str, list[str]]] = matrix.meta["leaked"]
    own = {i for kind in ("targets", "defences") for i in leaked.get(kind, {}).get(target, [])}
    used = sorted({s for s, _ in pairs_of(matrix, target, TRANSFER)})
    theirs = {s: set(ids) for s in used if (ids := leaked.get("sources", {}).get(s))}
    text = "trained on the evaluation images"
    return [
        _overlap(matrix, "leakage, target", "cap", own, text),
        _overlap(matrix, "leakage, sources", "note", set().union(*theirs.values()), f"{_named(list(theirs))} {text}"),
    ]


def selection(matrix: Matrix) -> Symptom:
    """E15: what was chosen on the evaluation images."""
    white = [a["name"] for a in matrix.meta["attacks"] if a["role"] == "white box"]
    text = f"the white-box row takes, per image, the best of {len(white)} attacks by their outcome; no other choice is known"
    return Symptom("E15", "selection", "note", "pass", text, len(white), None, len(matrix.ids))


def denominators(matrix: Matrix, target: str) -> Symptom:
    """E16: how many images, how many that the target gets right, how many that it and a source get right."""
    right = matrix.clean(target) >= 0.5
    both = [int((right & clean).sum()) for s in matrix.sources if (clean := matrix.source_clean(s)) is not None]
    k, n = int(right.sum()), len(right)
    text = f"n_all {n}, n_target_ok {k}, n_both_ok {min(both, default=0)} to {max(both, default=0)} over {len(both)} sources"
    share = clopper_pearson(k, n)
    return Symptom("E16", "denominators", "note", "pass", text, share.value, None, n, share.low, share.high)


def _overlap(matrix: Matrix, name: str, effect: str, leaked: set[str], text: str) -> Symptom:
    ids = [i for i in matrix.ids if i in leaked]
    share = clopper_pearson(len(ids), len(matrix.ids))
    status, text = ("fail", f"{text}: {len(ids)} of {share.n}") if ids else ("pass", f"none of {share.n} images was trained on")
    return Symptom("E10", name, effect, status, text, share.value, 0, share.n, share.low, share.high, tuple(ids[:SHOWN]))


def _not_run(id: str, name: str, reason: str) -> Symptom:
    return Symptom(id, name, "note", "not_run", reason)


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
