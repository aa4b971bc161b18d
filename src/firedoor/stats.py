"""Every rate, defined once; each is an Estimate with its interval and its denominator.

Simple rates carry Wilson 95 % intervals, promises Clopper-Pearson, extremes over many cells a bootstrap of whole example rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from firedoor.errors import UsageError
from firedoor.intervals import Estimate, clopper_pearson, holm, mcnemar, newcombe, wilson
from firedoor.matrix import Matrix

__all__ = [
    "Estimate",
    "Pair",
    "ahead",
    "chained_transfer_rate",
    "clean_accuracy",
    "clean_drop",
    "clopper_pearson",
    "excess_transfer",
    "false_positives",
    "holm",
    "home_rate",
    "loss",
    "mcnemar",
    "mean",
    "newcombe",
    "noise_floor",
    "robust_accuracy",
    "same_mistake_rate",
    "survivors",
    "transfer_rate",
    "wilson",
    "worst_case",
    "worst_of_k",
    "worst_pair",
    "worst_pair_split",
]

RESAMPLES = 2000
MOST_COUNTS = 50_000_000  # numbers of resampling counts that are kept
Pair = tuple[str, str]  # (source, attack)


def mean(share: np.ndarray, weight: np.ndarray | None = None) -> Estimate:
    """Weighted mean of per-example shares: Wilson where all are 0 or 1, else a bootstrap of examples."""
    weight = np.ones(len(share)) if weight is None else weight
    kept = weight > 0
    n = int(kept.sum())
    if n == 0:
        return wilson(0, 0)
    some = share[kept]
    if ((some == 0) | (some == 1)).all() and (weight[kept] == 1).all():
        return wilson(float(some.sum()), n)
    counts = _resample(len(share))  # rows without weight stay in, so that every rate of a matrix draws the same rows
    with np.errstate(invalid="ignore"):
        values = (counts @ (share * weight).astype(np.float32)).astype(float) / (counts @ weight.astype(np.float32))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Estimate(float((share * weight).sum() / weight.sum()), float(low), float(high), n)


# ---------------------------------------------------------------- rates of one cell


def clean_accuracy(matrix: Matrix, target: str) -> Estimate:
    """#C / N."""
    return mean(matrix.clean(target))


def clean_drop(matrix: Matrix, target: str, control: str) -> Estimate:
    """Clean accuracy of the control minus that of the target, on the same images; may be negative."""
    return _difference(matrix.clean(control), matrix.clean(target))


def false_positives(matrix: Matrix, target: str) -> Estimate:
    """Share of clean images that a detector rejects."""
    return mean(matrix.clean_rejected(target))


def robust_accuracy(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """Right on x_adv, clean errors included; None where the cell was not run."""
    right = matrix.right(source, attack, target)
    return None if right is None else mean(right)


def transfer_rate(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """P[wrong on x_adv | right on x]: the main rate. For a random target both sides are means over draws. None: not run."""
    right = matrix.right(source, attack, target)
    return None if right is None else mean(1 - right, matrix.clean(target))


def chained_transfer_rate(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """The same, given that the source was right and then fooled: blind to the examples that the source survived."""
    right, home = matrix.right(source, attack, target), matrix.home(source, attack, target)
    if right is None or home is None:
        return None
    return mean(1 - right, matrix.clean(target) * (home[0] & home[1]))


def home_rate(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """P[the source is wrong on x_adv | the source is right on x]; it depends on `target` for relative sources alone."""
    home = matrix.home(source, attack, target)
    return None if home is None else mean(home[1].astype(float), home[0].astype(float))


def same_mistake_rate(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """P[source and target give the same label on x_adv | both are wrong there]."""
    source_says, target_says = matrix.home_labels(source, attack, target), matrix.labels(source, attack, target)
    if source_says is None or target_says is None:
        return None
    both = (target_says != matrix.y[:, None]) & (source_says != matrix.y)[:, None]
    weight = both.mean(1)
    same = (both & (target_says == source_says[:, None])).mean(1)
    return mean(np.divide(same, weight, out=np.zeros_like(same), where=weight > 0), weight)


def noise_floor(matrix: Matrix, target: str) -> Estimate:
    """Transfer rate of random sign noise of the same size, mean of all its draws (one answer of the target for each)."""
    draws = matrix.noise(target)
    return mean(np.mean([1 - right for right in draws], axis=0), matrix.clean(target)) if draws else wilson(0, 0)


def excess_transfer(matrix: Matrix, source: str, attack: str, target: str) -> Estimate | None:
    """transfer_rate minus noise_floor on the same images; may be negative."""
    right = matrix.right(source, attack, target)
    draws = matrix.noise(target)
    if right is None or not draws:
        return None
    keep = matrix.clean(target) > 0
    floor = np.mean([1 - r for r in draws], axis=0)
    return _difference((1 - right)[keep], floor[keep])


# ---------------------------------------------------------------- rates over cells


def worst_pair(matrix: Matrix, target: str, pairs: Sequence[Pair], lenient: bool = False) -> tuple[Estimate, Pair] | None:
    """The least robust accuracy over (source, attack), and where. The bootstrap takes the minimum anew each time.

    The interval is never narrower than that of the worst pair alone, and reaches as far up as the bootstrap reaches down.
    `lenient`: a rejected example counts as right.
    """
    rows, kept = _rights(matrix, target, pairs, lenient)
    if not kept:
        return None
    means = rows.mean(1)
    worst = int(means.argmin())
    if len(kept) == 1:
        return mean(rows[0]), kept[0]
    counts = _resample(rows.shape[1])
    values = (counts @ rows.T.astype(np.float32)).min(1).astype(float) / rows.shape[1]
    low, high = np.quantile(values, (0.025, 0.975))
    value, alone = float(means[worst]), mean(rows[worst])
    high = max(float(high), 2 * value - float(low), alone.high)  # a minimum sits low, and its resampled minimum sits lower again
    return Estimate(value, min(value, float(low), alone.low), min(1.0, max(value, high)), rows.shape[1]), kept[worst]


def worst_pair_split(matrix: Matrix, target: str, pairs: Sequence[Pair]) -> Estimate | None:
    """The pair is chosen on one half of the examples and scored on the other, both ways: free of the bias of a minimum."""
    rows, kept = _rights(matrix, target, pairs)
    if not kept or rows.shape[1] < 2:
        return None
    even, odd = rows[:, ::2], rows[:, 1::2]
    return mean(np.concatenate([even[int(odd.mean(1).argmin())], odd[int(even.mean(1).argmin())]]))


def ahead(matrix: Matrix, ours: Sequence[str], theirs: Sequence[str], pairs: Sequence[Pair]) -> Estimate | None:
    """Mean over seeds of worst_pair of ours[i] minus that of theirs[i]: the same defences, trained with one seed each.

    Two levels: seeds are drawn with replacement, then images, the same ones for both arms; each draw takes its minima anew. With so
    few seeds the interval speaks of these checkpoints. None if a target has no cell that was run.
    Reference: crossed resampling, Owen 2007, arXiv:0711.0443.
    """
    if len(ours) != len(theirs) or not ours:
        raise UsageError(f"ahead needs as many targets of ours as of theirs, one per seed, got {len(ours)} and {len(theirs)}.")
    from firedoor.resampling import draw_counts

    arms = [[_rights(matrix, t, pairs)[0] for t in arm] for arm in (ours, theirs)]
    if any(len(rows) == 0 for arm in arms for rows in arm):
        return None
    n = arms[0][0].shape[1]
    counts = _resample(n)
    gaps = np.array(  # (seeds, resamples)
        [
            [(counts @ rows.T.astype(np.float32)).min(1).astype(float) / n for rows in (a, b)]
            for a, b in zip(arms[0], arms[1], strict=True)
        ]
    )
    gaps = gaps[:, 0] - gaps[:, 1]
    drawn = draw_counts(len(ours), len(counts)) / len(ours)
    low, high = np.quantile((drawn * gaps.T).sum(1), (0.025, 0.975))
    value = float(np.mean([a.mean(1).min() - b.mean(1).min() for a, b in zip(arms[0], arms[1], strict=True)]))
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def worst_case(matrix: Matrix, target: str, pairs: Sequence[Pair], lenient: bool = False) -> Estimate | None:
    """Right under every pair, per example: never above worst_pair. `lenient`: a rejected example counts as right."""
    rows, kept = _rights(matrix, target, pairs, lenient)
    return mean(rows.min(0)) if kept else None


def worst_of_k(matrix: Matrix, target: str, pair: Pair, draws: int, k: int) -> Estimate | None:
    """Share of examples right in all of k resubmissions to a random target: C(r, k) / C(J, k), unbiased."""
    right = matrix.right(pair[0], pair[1], target)
    if right is None or k > draws:
        return None
    counts = np.rint(right * draws).astype(int)
    return mean(np.array([math.comb(int(r), k) / math.comb(draws, k) for r in counts]))


def survivors(matrix: Matrix, target: str, pairs: Sequence[Pair]) -> np.ndarray | None:
    """(n,) true where at least half of the draws are right under every pair."""
    rows, kept = _rights(matrix, target, pairs)
    return np.asarray(rows.min(0) >= 0.5) if kept else None


def loss(matrix: Matrix, target: str, pairs: Sequence[Pair]) -> tuple[Estimate, np.ndarray] | None:
    """P[fooled by some pair | right on x] with the exact interval, and (n,) whether each example is fooled. For verdicts."""
    rows, kept = _rights(matrix, target, pairs)
    if not kept:
        return None
    clean, fooled = matrix.clean(target), 1 - rows.min(0)
    if matrix.is_random(target):
        return mean(fooled, clean), fooled
    right = clean > 0
    return clopper_pearson(int((fooled[right] > 0).sum()), int(right.sum())), fooled


# ---------------------------------------------------------------- private


def _rights(matrix: Matrix, target: str, pairs: Sequence[Pair], lenient: bool = False) -> tuple[np.ndarray, list[Pair]]:
    found = [(matrix.right(*p, target), p) for p in pairs]
    kept = [(right, pair) for right, pair in found if right is not None]
    if lenient:
        kept = [(right + rejected, p) for right, p in kept if (rejected := matrix.rejected(*p, target)) is not None]
    return np.array([right for right, _ in kept]), [pair for _, pair in kept]


def _difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of a minus mean of b on the same examples."""
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        one, two = a > 0, b > 0
        return newcombe(int((one & ~two).sum()), int((two & ~one).sum()), int((one & two).sum()), int((~one & ~two).sum()))
    values = _resample(len(a)) @ (a - b).astype(np.float32) / max(len(a), 1)
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(float((a - b).mean()), float(low), float(high), len(a))


_counts: dict[int, np.ndarray] = {}


def _resample(n: int) -> np.ndarray:
    """(resamples, n) how often each example row is drawn; the same for every cell, so cells of an id move together."""
    if n not in _counts:
        from firedoor.resampling import draw_counts

        if sum(c.size for c in _counts.values()) > MOST_COUNTS:
            _counts.clear()
        _counts[n] = draw_counts(n, RESAMPLES)
    return _counts[n]
