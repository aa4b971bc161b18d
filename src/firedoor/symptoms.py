"""Signs of false security that are read off the matrix: which examples fell to which kind of attack.

Each compares what a target's own gradients admit with what something else did to it. `naive`: the gradient as it stands.
"""

from __future__ import annotations

import numpy as np

from firedoor import stats
from firedoor.intervals import LEAST_EFFECT, clopper_pearson, significant, wilson
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom

__all__ = ["bookkeeping_signs", "failed_at_home", "gradient_signs", "naive_attacks", "own_rows", "pairs_of"]

MARGIN = 0.1  # over the majority class
SUSPECT = 0.005  # lower bound of the share that the white box missed
HOME_BAR, HOME_CAP = 0.5, 0.95
OWN = ("S5", "naive", "stripped")  # rows that attack the target's own weights


def pairs_of(matrix: Matrix, target: str, rungs: tuple[str, ...], seen: bool | None = None) -> list[stats.Pair]:
    """The (source, attack) cells of these rungs that were run and are no nulls. seen: both seen, or at least one held out."""
    attacks = {a["name"]: a for a in matrix.meta["attacks"]}
    sources = {s["name"]: s for s in matrix.meta["sources"]}
    found = []
    for source in matrix.sources:
        if matrix.meta["rungs"].get(source, {}).get(target) not in rungs:
            continue
        for attack in matrix.attacks:
            fact = attacks[attack]
            if fact["role"] == "null" or matrix.right(source, attack, target) is None:
                continue
            both_seen = bool(sources.get(source, {}).get("seen")) and bool(fact["seen"])
            if seen is None or seen == both_seen:
                found.append((source, attack))
    return found


def failed_at_home(matrix: Matrix, source: str, attack: str, target: str) -> tuple[str, str]:
    """E5: ('', ''), or ('void' | 'capped', reason): an attack that failed on its own source proves nothing about a target."""
    place = target if source in matrix.meta["relative"] else ""  # all targets share a real source
    found: tuple[str, str] = matrix.remember(("home", source, attack, place), lambda: _judge_home(matrix, source, attack, target))
    if found[0] != "void" and matrix.meta["rungs"].get(source, {}).get(target) not in OWN:
        returned = next((a.get("boundary", "") for a in matrix.meta["attacks"] if a["name"] == attack), "")
        if returned:
            return "capped", f"the attack returns the {returned} point, which says little of another model"
    return found


def _judge_home(matrix: Matrix, source: str, attack: str, target: str) -> tuple[str, str]:
    home = matrix.home(source, attack, target)
    if home is None:
        return "", ""
    rate = _home_rate(home)
    place = target if source in matrix.meta["relative"] else ""
    best = max(rate, matrix.remember(("best at home", source, place), lambda: _best_at_home(matrix, source, target)))
    clean, after = home
    n, k = int(clean.sum()), int((clean & after).sum())
    floor = _noise_at_home(matrix, source)
    if k == 0 or rate < HOME_BAR * best or (floor is not None and wilson(k, n).low <= floor):
        return "void", f"the attack failed at home: it fooled {k} of {n} of its own source"
    if rate < HOME_CAP * best:
        return "capped", f"fooled {rate:.0%} of its own source, less than {HOME_CAP:.0%} of the best attack's {best:.0%}"
    return "", ""


def own_rows(matrix: Matrix) -> list[str]:
    """Rows that attack the target through its own defence: by its relax, and by the identity where that is another way."""
    return [row for row in ("itself", "itself, identity") if row in matrix.sources]


def naive_attacks(matrix: Matrix) -> list[str]:
    """The white-box attacks that follow the plain cross-entropy; all of them where a study has none such."""
    white = [a for a in matrix.meta["attacks"] if a["role"] == "white box"]
    return [a["name"] for a in white if a["objective"] == "cross_entropy"] or [a["name"] for a in white]


def gradient_signs(matrix: Matrix, target: str) -> list[Symptom]:
    """E3, E4 and the relaxation gap of one target, each against its naive gradient (a printed sign) and its best white box (a mask)."""
    white = [a for a in matrix.meta["attacks"] if a["role"] == "white box"]
    naive = [("itself, naive", name) for name in naive_attacks(matrix)]
    rows = {"as it stands": naive, "at its best": [(row, a["name"]) for row in own_rows(matrix) for a in white]}
    relaxed = target in matrix.meta["relaxed"]
    transfer = [
        p for p in pairs_of(matrix, target, ("S0", "S1", "S2", "S3", "S4")) if failed_at_home(matrix, *p, target)[0] != "void"
    ]
    twin = [p for p in pairs_of(matrix, target, ("S1",)) if failed_at_home(matrix, *p, target)[0] != "void"]
    bare = pairs_of(matrix, target, ("stripped",))
    signs = []
    for view, own in rows.items():
        if view == "as it stands" and not relaxed:
            continue
        effect = "note" if view == "as it stands" else "mask"
        every_naive = [("itself, naive", a["name"]) for a in white]
        reference = own if view == "as it stands" or not relaxed else own + every_naive
        signs.append(_beats(matrix, target, "E3", f"transfer beats the white box, {view}", effect, transfer, reference))
        signs.append(_beats(matrix, target, "E4t", f"undefended twin beats the white box, {view}", effect, twin, reference))
        if bare:
            signs.append(_beats(matrix, target, "E4", f"stripped target beats the white box, {view}", effect, bare, reference))
    if relaxed:
        best = rows["at its best"]
        signs.append(_beats(matrix, target, "R1", "relaxed gradient beats the naive one", "note", best, naive, each=False))
    return signs


def bookkeeping_signs(matrix: Matrix, target: str) -> list[Symptom]:
    """A12: is there anything to defend; E1: does the target answer its own examples as it did when they were made."""
    clean = matrix.clean(target)
    classes = np.bincount(matrix.y.astype(int))
    majority, n = float(classes.max() / len(matrix.y)), len(clean)
    found = stats.mean(clean)
    worth = "pass" if found.low > majority + MARGIN else "fail"
    text = f"clean accuracy is at least {found.low:.0%}, the largest class has {majority:.0%}"
    signs = [Symptom("A12", "worth defending", "cap", worth, text, found.value, majority + MARGIN, n, found.low, found.high)]
    differ = 0
    if target in matrix.meta["relaxed"] or matrix.is_random(target):
        return signs
    for fact in matrix.meta["attacks"]:
        right, home = matrix.right("itself", fact["name"], target), matrix.home("itself", fact["name"], target)
        if right is not None and home is not None:
            differ += int(((right == 0) != home[1]).sum())
    status = "fail" if differ else "pass"
    return [
        *signs,
        Symptom("E1", "identity", "void", status, f"{differ} answers changed between crafting and scoring", differ, 0, n),
    ]


def _beats(
    matrix: Matrix,
    target: str,
    id: str,
    name: str,
    effect: str,
    challengers: list[stats.Pair],
    own: list[stats.Pair],
    each: bool = True,
) -> Symptom:
    """Whether some challenger cell (or, not `each`, all of them together) fools images that `own` does not."""
    clean = matrix.clean(target) >= 0.5
    mine = _fooled(matrix, target, own)
    groups = [[p] for p in challengers] if each else [challengers]
    theirs = [(g, f) for g in groups if (f := _fooled(matrix, target, g)) is not None]
    n = int(clean.sum())
    if mine is None or not theirs or n == 0:
        return Symptom(id, name, effect, "not_run", "there is nothing to compare", n=n)

    def signs(fooled: np.ndarray) -> tuple[bool, bool, int]:
        """(fails, suspect, fooled images): one bad cell is enough, so a better cell beside it must not hide it."""
        gained, lost = int((fooled & ~mine & clean).sum()), int((mine & ~fooled & clean).sum())
        suspect = effect == "mask" and clopper_pearson(gained, n).low > SUSPECT
        return significant(gained, lost, n), suspect, int((fooled & clean).sum())

    group, fooled = max(theirs, key=lambda gf: signs(gf[1]))
    fails, suspect, _ = signs(fooled)
    gained, lost = int((fooled & ~mine & clean).sum()), int((mine & ~fooled & clean).sum())
    share = clopper_pearson(gained, n)
    status = "fail" if fails else "suspect" if suspect else "pass"
    who = f"{group[0][1]} from {group[0][0]}" if each else "the relaxed gradient"
    text = f"{who} fools {gained} of {n} images that its own gradient does not, and misses {lost} that it does"
    ids = tuple(np.array(matrix.ids)[fooled & ~mine & clean][:20].tolist())
    return Symptom(id, name, effect, status, text, share.value, LEAST_EFFECT, n, share.low, share.high, ids)


def _fooled(matrix: Matrix, target: str, pairs: list[stats.Pair]) -> np.ndarray | None:
    """(n,) true where some pair leaves the target right in fewer than half of the draws."""
    rows = [r for p in pairs if (r := matrix.right(*p, target)) is not None]
    return (np.min(rows, axis=0) < 0.5) if rows else None


def _best_at_home(matrix: Matrix, source: str, target: str) -> float:
    """The highest rate at which any real attack fooled its own source."""
    real = [a["name"] for a in matrix.meta["attacks"] if a["role"] != "null"]
    return max((_home_rate(h) for a in real if (h := matrix.home(source, a, target)) is not None), default=0.0)


def _home_rate(home: tuple[np.ndarray, np.ndarray]) -> float:
    clean, after = home
    return float((clean & after).sum() / max(clean.sum(), 1))


def _noise_at_home(matrix: Matrix, source: str) -> float | None:
    """Share of a source's right answers that sign noise turns, where it was measured."""
    floor = matrix.meta["source_noise"].get(source)
    return None if floor is None else float(floor)
