"""What else a reader of a transfer rate must know, read off the matrix and its facts: tests E6 to E16 of one target.

All are notes, which print and decide nothing, but for E10, where the target has trained on the evaluation images.
"""

from __future__ import annotations

import numpy as np

from firedoor import stats
from firedoor.comparison_signs import denominators, equal_effort, equal_strength, leakage, selection
from firedoor.intervals import LEAST_DISCORDANT, LEAST_EFFECT, clopper_pearson, significant
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom
from firedoor.symptoms import failed_at_home, pairs_of

__all__ = ["better_than_noise", "transfer_signs"]

SHOWN = 20  # example ids that a symptom carries
NAMED = 5  # attacks or sources that a text names
PUBLIC, TRANSFER = ("S0", "S1", "S2"), ("S0", "S1", "S2", "S3", "S4")


def transfer_signs(matrix: Matrix, target: str) -> list[Symptom]:
    """E6 to E16 of one target, in order."""
    return [
        _mistakes(matrix, target),
        _null_attack(matrix, target),
        equal_strength(matrix, target),
        equal_effort(matrix),
        *leakage(matrix, target),
        _seen_sources(matrix, target),
        _seed_twin(matrix, target),
        _own_recipe(matrix, target),
        _best_of_n(matrix, target),
        selection(matrix),
        denominators(matrix, target),
    ]


def better_than_noise(matrix: Matrix, target: str) -> dict[str, bool]:
    """For each transferred attack, whether some cell of it fools significantly more than every null. Empty without a null or a cell."""
    c = _right_clean(matrix, target)
    names = [a["name"] for a in matrix.meta["attacks"] if a["role"] == "null"]
    cells = [f for s in matrix.sources for a in names if (f := _fooled(matrix, s, a, target)) is not None]
    nulls = cells + [draw < 0.5 for draw in matrix.noise(target)]
    found: dict[str, bool] = {}
    for source, attack in _standing(matrix, target, TRANSFER) if nulls else []:
        f = _fooled(matrix, source, attack, target)
        assert f is not None
        above = (significant(int((f & ~null & c).sum()), int((null & ~f & c).sum()), int(c.sum())) for null in nulls)
        found[attack] = found.get(attack, False) or all(above)
    return found


# ---------------------------------------------------------------- one test each


def _mistakes(matrix: Matrix, target: str) -> Symptom:
    """E6: what fooled answers say: the source's mistake, or another one."""
    c, y = _right_clean(matrix, target), matrix.y
    same, other, total = np.zeros(len(y)), np.zeros(len(y)), 0
    for source, attack in _standing(matrix, target, TRANSFER):
        its = _labels_at_home(matrix, source, attack, target)
        if (its >= 0).all():
            mine = matrix.data["predicted"].values[
                matrix.sources.index(source), matrix.attacks.index(attack), matrix.targets.index(target)
            ]
            same += c & (mine != y) & (mine == its)
            other += c & (mine != y) & (mine != its)
            total += int(c.sum())
    if total == 0:
        return _not_run("E6", "mistakes", "no transferred cell")
    wrong = same + other
    share = stats.mean(np.divide(same, wrong, out=np.zeros(len(y)), where=wrong > 0), wrong)
    parts = [float(part.sum()) / total for part in (same, other)]
    text = f"of all transferred answers {parts[0]:.0%} are the source's mistake, {parts[1]:.0%} another mistake, {1 - sum(parts):.0%} right"
    if share.n == 0:
        return Symptom("E6", "mistakes", "note", "pass", text, n=int(c.sum()))
    return Symptom("E6", "mistakes", "note", "pass", text, share.value, None, share.n, share.low, share.high)


def _null_attack(matrix: Matrix, target: str) -> Symptom:
    """E7: attacks that do no better than the best null. A note: on a target that resists, every attack looks like noise."""
    name, n = "null attack", int(_right_clean(matrix, target).sum())
    found = better_than_noise(matrix, target)
    if not found or n < LEAST_DISCORDANT:
        return _not_run("E7", name, "needs a null and a transferred attack that were run, and 8 images that the target gets right")
    low = [attack for attack, better in found.items() if not better]
    if not low:
        return Symptom("E7", name, "note", "pass", f"each of {len(found)} attacks does better than noise", 0, 0, n)
    finding = "no better than noise, even here" if target == matrix.meta["control"] else "not distinguishable from noise"
    text = f"{finding}: {len(low)} of {len(found)} attacks ({_named(low)})"
    return Symptom("E7", name, "note", "fail", text, len(low), 0, n)


def _seen_sources(matrix: Matrix, target: str) -> Symptom:
    """E11: whether unseen sources do better than those that the defence trained or tuned on, with the same attacks."""
    seen = {s["name"] for s in matrix.meta["sources"] if s["seen"]}
    pairs = _standing(matrix, target, PUBLIC)
    both = {a for s, a in pairs if s in seen} & {a for s, a in pairs if s not in seen}
    unseen = [(s, a) for s, a in pairs if s not in seen and a in both]
    known = [(s, a) for s, a in pairs if s in seen and a in both]
    return _stronger(matrix, target, ("E11", "seen sources"), unseen, known, "overfits the sources it saw")


def _seed_twin(matrix: Matrix, target: str) -> Symptom:
    """E12: the strongest attack from a network of the same recipe, undefended, with another seed."""
    pair = _strongest(matrix, target, _standing(matrix, target, ("S1",)))
    rate = stats.transfer_rate(matrix, *pair, target) if pair else None
    if pair is None or rate is None or rate.n == 0:
        return _not_run("E12", "seed twin", "no source of rung S1, or no right answer to turn")
    text = f"{pair[1]} from the twin {pair[0]!r} turns {rate.value:.0%} of its right answers"
    return Symptom("E12", "seed twin", "note", "pass", text, rate.value, None, rate.n, rate.low, rate.high)


def _own_recipe(matrix: Matrix, target: str) -> Symptom:
    """E13: whether an attacker who repeats the defence does better than those who do not know it."""
    own, public = (_standing(matrix, target, rungs) for rungs in (("S3",), PUBLIC))
    return _stronger(matrix, target, ("E13", "own recipe"), own, public, "leans on the recipe being secret")


def _best_of_n(matrix: Matrix, target: str) -> Symptom:
    """E14: an attacker who tries every source with one attack, beside the mean over sources."""
    best: tuple[stats.Estimate, str, list[float]] | None = None
    for attack in matrix.attacks:
        pairs = [p for p in _standing(matrix, target, TRANSFER) if p[1] == attack]
        union = stats.loss(matrix, target, pairs)
        if union is not None and (best is None or union[0].value > best[0].value):
            best = union[0], attack, [r.value for p in pairs if (r := stats.transfer_rate(matrix, *p, target)) is not None]
    if best is None or best[0].n == 0:
        return _not_run("E14", "best of N", "no transferred cell")
    any_of, attack, rates = best
    text = f"{attack} from any of {len(rates)} sources turns {any_of.value:.0%}; the mean over sources is {np.mean(rates):.0%}"
    return Symptom("E14", "best of N", "note", "pass", text, any_of.value, None, any_of.n, any_of.low, any_of.high)


# ---------------------------------------------------------------- private


def _stronger(
    matrix: Matrix, target: str, test: tuple[str, str], challengers: list[stats.Pair], others: list[stats.Pair], finding: str
) -> Symptom:
    """Whether the strongest challenger cell fools significantly more than the strongest of the others: a note."""
    one, two = _strongest(matrix, target, challengers), _strongest(matrix, target, others)
    c = _right_clean(matrix, target)
    if one is None or two is None or not c.any():
        return _not_run(*test, "there is nothing to compare")
    a, b = _fooled(matrix, *one, target), _fooled(matrix, *two, target)
    assert a is not None
    assert b is not None
    gained, lost, n = int((a & ~b & c).sum()), int((b & ~a & c).sum()), int(c.sum())
    share, fires = clopper_pearson(gained, n), significant(gained, lost, n)
    text = f"{one[1]} from {one[0]!r} fools {gained} of {n} images that {two[1]} from {two[0]!r} does not, and misses {lost}"
    ids = tuple(np.array(matrix.ids)[a & ~b & c][:SHOWN].tolist())
    status, text = ("fail", f"{finding}: {text}") if fires else ("pass", text)
    return Symptom(*test, "note", status, text, share.value, LEAST_EFFECT, n, share.low, share.high, ids)


def _standing(matrix: Matrix, target: str, rungs: tuple[str, ...]) -> list[stats.Pair]:
    """Cells of these rungs that were run and did not fail at home."""
    found: list[stats.Pair] = matrix.remember(
        ("standing", target, rungs),
        lambda: [p for p in pairs_of(matrix, target, rungs) if failed_at_home(matrix, *p, target)[0] != "void"],
    )
    return found


def _strongest(matrix: Matrix, target: str, pairs: list[stats.Pair]) -> stats.Pair | None:
    """The pair that fools most of the images that the target gets right."""
    c = _right_clean(matrix, target)
    counts = [(int((f & c).sum()), p) for p in pairs if (f := _fooled(matrix, *p, target)) is not None]
    return max(counts, key=lambda found: found[0])[1] if counts else None


def _fooled(matrix: Matrix, source: str, attack: str, target: str) -> np.ndarray | None:
    """(n,) true where fewer than half of the draws are right; None where the cell was not run."""
    right = matrix.right(source, attack, target)
    return None if right is None else right < 0.5


def _right_clean(matrix: Matrix, target: str) -> np.ndarray:
    return np.asarray(matrix.clean(target) >= 0.5)


def _labels_at_home(matrix: Matrix, source: str, attack: str, target: str) -> np.ndarray:
    """(n,) what the source itself says of the examples, -1 where unknown."""
    a, data = matrix.attacks.index(attack), matrix.data
    if source in matrix.meta["relative"]:
        row = [str(s) for s in data["relative_source"].values].index(source)
        return np.asarray(data["own_home"].values[row, a, matrix.targets.index(target)])
    return np.asarray(data["home"].values[matrix.sources.index(source), a])


def _not_run(id: str, name: str, reason: str) -> Symptom:
    return Symptom(id, name, "note", "not_run", reason)


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
