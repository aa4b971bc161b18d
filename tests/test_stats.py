"""Every rate against a count by hand, every interval against its coverage, the whole pipeline against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from torch import Tensor, nn

from firedoor import stats
from firedoor.attacks import FGSM, I_FGSM, MI_FGSM
from firedoor.errors import SpecError, UsageError
from firedoor.matrix import Matrix
from firedoor.pipeline import run
from firedoor.protocols import Access, Model, Split, Store
from firedoor.stats import Estimate
from firedoor.store import FileStore
from firedoor.study import Study
from firedoor.symptoms import gradient_signs
from firedoor.threat import L2, Linf, Threat
from reading_fakes import CLASSES, Attack, Draft, Source, Target, mask

# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("n", [1, 7, 100, 1000])
def test_wilson_and_clopper_pearson_equal_scipy(n: int) -> None:
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        reference = scipy_stats.binomtest(k, n)
        for ours, method in ((stats.wilson(k, n), "wilson"), (stats.clopper_pearson(k, n), "exact")):
            low, high = reference.proportion_ci(0.95, method=method)  # type: ignore[arg-type]
            assert (ours.value, ours.n) == (k / n, n)
            assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12), (method, k, n)
            assert 0 <= ours.low <= ours.value <= ours.high <= 1


def coverage(interval: Callable[[int, int], Estimate], n: int, p: float) -> float:
    """The exact chance that the interval holds the true rate."""
    held = [k for k in range(n + 1) if interval(k, n).low <= p <= interval(k, n).high]
    return float(scipy_stats.binom.pmf(held, n, p).sum())


def test_wilson_covers_93_to_97_percent_and_on_average_95() -> None:
    grid = [(n, p) for n in (100, 400, 1000) for p in (0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.9)]
    found = {at: coverage(stats.wilson, *at) for at in grid}
    assert all(0.93 <= c <= 0.97 for c in found.values()), found
    assert np.mean(list(found.values())) == pytest.approx(0.95, abs=0.005)
    assert coverage(stats.wilson, 100, 0.02) > 0.93, "where the textbook interval covers 87 %"


def test_clopper_pearson_never_covers_less_than_95_percent() -> None:
    found = {(n, p): coverage(stats.clopper_pearson, n, p) for n in (5, 30, 200) for p in (0.001, 0.02, 0.1, 0.3, 0.5, 0.77, 0.99)}
    assert all(c >= 0.95 for c in found.values()), found


def test_nothing_measured_is_no_number_and_no_bound() -> None:
    for empty in (stats.wilson(0, 0), stats.clopper_pearson(0, 0), stats.mean(np.array([]))):
        assert math.isnan(empty.value)
        assert (empty.low, empty.high, empty.n) == (0.0, 1.0, 0)


def test_newcombe_gives_the_published_interval() -> None:
    """Bentur et al. 2009 as in Fagerland et al. 2014: 1 in both, 1 only before, 7 only after, 12 in none; -0.507 to -0.026."""
    found = stats.newcombe(only_a=1, only_b=7, both=1, neither=12)
    assert (found.value, found.n) == (pytest.approx(-6 / 21), 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.507, -0.026)


def by_hand(only_a: int, only_b: int, both: int, neither: int) -> tuple[float, float]:
    """Newcombe 1998, method 10, from scipy's Wilson limits."""
    n = only_a + only_b + both + neither
    (l1, u1), (l2, u2) = (scipy_stats.binomtest(both + k, n).proportion_ci(0.95, method="wilson") for k in (only_a, only_b))
    p1, p2 = (both + only_a) / n, (both + only_b) / n
    determinant = both * neither - only_a * only_b
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    numerator = min(determinant, 0) if determinant <= 0 else max(determinant - n / 2, 0)
    phi = numerator / math.sqrt(margins) if margins else 0.0
    low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    return max(low, -1), min(high, 1)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0))
def test_newcombe_is_its_formula_and_changes_sign_with_the_sides(table: tuple[int, int, int, int]) -> None:
    only_a, only_b, both, neither = table
    found, turned = stats.newcombe(*table), stats.newcombe(only_b, only_a, both, neither)
    assert (found.low, found.high) == pytest.approx(by_hand(*table), abs=1e-12)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_newcombe_without_correlation_is_the_unpaired_square_and_add() -> None:
    found = stats.newcombe(only_a=24, only_b=24, both=16, neither=36)  # both * neither = only_a * only_b
    one = stats.wilson(40, 100)
    assert found.high == pytest.approx(math.hypot(one.high - one.value, one.value - one.low))


def test_newcombe_covers_the_difference_of_paired_rates() -> None:
    generator = np.random.default_rng(5)
    for p in ([0.1, 0.05, 0.6, 0.25], [0.3, 0.1, 0.3, 0.3], [0.02, 0.2, 0.1, 0.68]):
        tables = generator.multinomial(100, p, size=3000)
        held = [(e := stats.newcombe(*map(int, t))).low <= p[0] - p[1] <= e.high for t in tables]
        assert 0.935 <= np.mean(held) <= 0.985, p


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (8, 0), (7, 1), (5, 5), (3, 9), (30, 12), (600, 500)])
def test_mcnemar_equals_the_exact_binomial(gained: int, lost: int) -> None:
    n = gained + lost
    two = scipy_stats.binomtest(gained, n, 0.5).pvalue if n else 1.0
    one = scipy_stats.binomtest(gained, n, 0.5, alternative="greater").pvalue if n else 1.0
    assert stats.mcnemar(gained, lost) == pytest.approx(two, rel=1e-9)
    assert stats.mcnemar(gained, lost, one_sided=True) == pytest.approx(one, rel=1e-9)


def test_mcnemar_equals_enumeration() -> None:
    for gained, lost in ((6, 1), (2, 3), (4, 4)):
        ways = [sum(w) for w in itertools.product((0, 1), repeat=gained + lost)]
        assert stats.mcnemar(gained, lost, one_sided=True) == pytest.approx(np.mean([w >= gained for w in ways]))
        least = min(gained, lost)
        assert stats.mcnemar(gained, lost) == pytest.approx(
            np.mean([w <= least or w >= gained + lost - least for w in ways]) if gained != lost else 1.0
        )


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]
    assert stats.holm([0.02]) == [0.02]
    assert stats.holm([]) == []


# ---------------------------------------------------------------- means


def test_a_mean_of_right_and_wrong_is_wilson() -> None:
    assert stats.mean(np.array([1.0, 0, 1, 1])) == stats.wilson(3, 4)
    assert stats.mean(np.array([1.0, 0, 1, 1]), np.array([0.0, 1, 1, 0])) == stats.wilson(1, 2)


def test_a_mean_of_shares_is_weighted_and_its_interval_is_a_bootstrap() -> None:
    share, weight = np.array([0.5, 1.0, 0.0, 0.25]), np.array([1.0, 0.5, 0.0, 0.5])
    found = stats.mean(share, weight)
    assert found.value == pytest.approx((0.5 + 0.5 + 0.125) / 2)
    assert found.n == 3, "an example of weight 0 is not in the denominator"
    assert found.low <= found.value <= found.high
    assert stats.mean(share, weight) == found, "the draws of the bootstrap must be fixed"
    generator = np.random.default_rng(0)
    many = generator.beta(2, 3, size=400)
    wide = stats.mean(many)
    half = 1.96 * many.std(ddof=1) / 20
    assert (wide.low, wide.high) == pytest.approx((many.mean() - half, many.mean() + half), abs=0.2 * half)


# ---------------------------------------------------------------- rates of one cell, by hand

N = 10
Y = np.arange(N)
T = Target("t")


def small() -> Draft:
    """Ten examples; the target is wrong on 0 and 1. Of the other eight, cell s/a fools 2, 3, 4, and it repairs 0."""
    draft = Draft(Y, [T, Target("control")], [Source("s")], [Attack("a"), Attack("b"), Attack("noise", "null")])
    draft.clean["t"] = draft.wrong_where(mask(N, 0, 1))
    draft.fool("s", "a", "t", mask(N, 1, 2, 3, 4))
    draft.fool("s", "b", "t", mask(N, 1, 4, 5))
    draft.fool("s", "a", "control", mask(N, 0, 1, 2))
    return draft


def test_rates_of_a_cell_by_hand() -> None:
    matrix = small().matrix()
    assert stats.clean_accuracy(matrix, "t") == stats.wilson(8, 10)
    assert stats.robust_accuracy(matrix, "s", "a", "t") == stats.wilson(6, 10)
    assert stats.transfer_rate(matrix, "s", "a", "t") == stats.wilson(3, 8)
    assert stats.clean_accuracy(matrix, "control") == stats.wilson(10, 10)
    assert stats.transfer_rate(matrix, "s", "a", "control") == stats.wilson(3, 10)
    assert stats.clean_drop(matrix, "t", "control") == stats.newcombe(only_a=2, only_b=0, both=8, neither=0)
    assert stats.clean_drop(matrix, "control", "t").value == pytest.approx(-0.2)


def test_the_chained_rate_is_blind_to_what_the_source_survived() -> None:
    draft = small()
    draft.source_clean["s"] = draft.wrong_where(mask(N, 2))  # wrong on 2 before any attack
    draft.home["s", "a"] = draft.wrong_where(
        mask(N, 0, 2, 3, 5, 6)
    )  # so fooled: 0, 3, 5, 6; of these the target is right on 3, 5, 6
    assert stats.chained_transfer_rate(draft.matrix(), "s", "a", "t") == stats.wilson(1, 3)
    draft.home["s", "a"] = np.full(N, -1)
    assert stats.chained_transfer_rate(draft.matrix(), "s", "a", "t") is None


def test_home_rate_counts_what_the_source_had_right_and_lost() -> None:
    draft = small()
    draft.source_clean["s"] = draft.wrong_where(mask(N, 2))
    draft.home["s", "a"] = draft.wrong_where(mask(N, 0, 2, 3, 5, 6))
    assert stats.home_rate(draft.matrix(), "s", "a", "t") == stats.wilson(4, 9)
    draft.home["s", "a"] = np.full(N, -1)
    assert stats.home_rate(draft.matrix(), "s", "a", "t") is None


def test_the_same_mistake_is_the_same_wrong_label_where_both_are_wrong() -> None:
    draft = small()
    draft.cells["s", "a", "t"] = (draft.y + np.array([1, 1, 2, 2, 0, 1, 0, 1, 0, 0])) % CLASSES
    draft.home["s", "a"] = (draft.y + np.array([1, 2, 2, 1, 1, 1, 0, 0, 0, 0])) % CLASSES
    assert stats.same_mistake_rate(draft.matrix(), "s", "a", "t") == stats.wilson(3, 5)
    draft.cells["s", "a", "t"][9] = -1
    assert stats.same_mistake_rate(draft.matrix(), "s", "a", "t") is None


def test_the_noise_floor_is_the_mean_of_its_draws_and_is_taken_off_on_the_same_images() -> None:
    draft = small()
    turned = [mask(N, 2), mask(N, 2, 3), mask(N, 0, 1), mask(N), mask(N, 9)]
    draft.noise["t"] = np.stack([draft.wrong_where(m) for m in turned])
    matrix = draft.matrix()
    floor = stats.noise_floor(matrix, "t")
    assert (floor.value, floor.n) == (pytest.approx(4 / 5 / 8), 8)
    excess = stats.excess_transfer(matrix, "s", "a", "t")
    assert excess is not None
    assert (excess.value, excess.n) == (pytest.approx(3 / 8 - 4 / 5 / 8), 8)
    assert excess.low <= excess.value <= excess.high
    draft.noise["t"] = np.stack([draft.wrong_where(mask(N, 2, 9))] * 5)
    paired = stats.excess_transfer(draft.matrix(), "s", "a", "t")  # fooled 2, 3, 4 against 2, 9
    assert paired == stats.newcombe(only_a=2, only_b=1, both=1, neither=4)


def test_an_attack_that_does_nothing_transfers_nothing() -> None:
    draft = small()
    draft.cells["s", "a", "t"] = draft.clean["t"]
    draft.noise["t"] = np.stack([draft.clean["t"]] * 5)
    matrix = draft.matrix()
    assert stats.transfer_rate(matrix, "s", "a", "t") == stats.wilson(0, 8)
    assert stats.robust_accuracy(matrix, "s", "a", "t") == stats.clean_accuracy(matrix, "t")
    assert stats.excess_transfer(matrix, "s", "a", "t") == stats.newcombe(0, 0, 0, 8)


def test_minus_one_is_neither_right_nor_wrong() -> None:
    draft = small()
    draft.cells["s", "a", "t"][7] = -1
    matrix = draft.matrix()
    for rate in (stats.robust_accuracy, stats.transfer_rate, stats.chained_transfer_rate, stats.excess_transfer):
        assert rate(matrix, "s", "a", "t") is None, "one missing answer takes the cell out"
        assert rate(matrix, "s", "noise", "t") is None, "a cell that was not run"
    pairs = [("s", "a"), ("s", "b"), ("s", "noise")]
    assert stats.worst_case(matrix, "t", pairs) == stats.wilson(7, 10), "the one whole cell counts"
    assert stats.worst_pair(matrix, "t", pairs) == (stats.wilson(7, 10), ("s", "b"))
    only = [("s", "a"), ("s", "noise")]
    for over in (stats.worst_case, stats.worst_pair, stats.worst_pair_split, stats.survivors, stats.loss):
        assert over(matrix, "t", only) is None
    with pytest.raises(SpecError, match="Did you mean 't'"):
        stats.clean_accuracy(matrix, "T")


def detecting(random: bool) -> Matrix:
    """Ten examples. Under attack: 0 to 2 rejected, 3 and 4 fooled, the others right. Of the clean ones the last is rejected."""
    y = np.arange(N) % CLASSES
    labels = np.where(mask(N, 0, 1, 2), CLASSES, np.where(mask(N, 3, 4), (y + 1) % CLASSES, y))
    clean = np.where(mask(N, 9), CLASSES, y)
    draft = Draft(y, [Target("t", abstains=True, random=random)], draws=2)
    draft.clean["t"] = clean
    again = np.stack([labels, np.where(mask(N, 0), y, labels)], 1)  # in its second draw it lets the first one pass, rightly
    draft.cells["s", "a", "t"] = again if random else labels
    return draft.matrix()


def test_a_detector_has_a_strict_and_a_lenient_reading_and_false_positives() -> None:
    matrix, pairs = detecting(random=False), [("s", "a")]
    strict, lenient = stats.worst_pair(matrix, "t", pairs), stats.worst_pair(matrix, "t", pairs, lenient=True)
    assert strict == (stats.wilson(5, 10), ("s", "a")), "strict: the three that are rejected are errors"
    assert lenient == (stats.wilson(8, 10), ("s", "a")), "lenient: only the two that are fooled are"
    assert stats.worst_case(matrix, "t", pairs, lenient=True) == stats.wilson(8, 10)
    assert stats.false_positives(matrix, "t") == stats.wilson(1, 10)
    assert stats.clean_accuracy(matrix, "t") == stats.wilson(9, 10), "a clean image that is rejected is an error in both readings"


def test_a_random_detector_is_read_by_shares_of_draws() -> None:
    matrix = detecting(random=True)
    right, rejected = matrix.right("s", "a", "t"), matrix.rejected("s", "a", "t")
    assert right is not None
    assert rejected is not None
    assert right.tolist() == [0.5, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert rejected.tolist() == [0.5, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert matrix.rejected("s", "a", "t") is not None
    assert matrix.rejected("itself", "a", "t") is None


def test_rates_over_cells_by_hand() -> None:
    matrix = small().matrix()
    pairs = [("s", "a"), ("s", "b")]
    found = stats.worst_pair(matrix, "t", pairs)
    assert found is not None
    assert (found[0].value, found[0].n, found[1]) == (0.6, 10, ("s", "a"))
    assert stats.worst_case(matrix, "t", pairs) == stats.wilson(5, 10), "wrong under some pair: 1, 2, 3, 4, 5"
    survivors = stats.survivors(matrix, "t", pairs)
    assert survivors is not None
    assert survivors.tolist() == (~mask(N, 1, 2, 3, 4, 5)).tolist()
    loss = stats.loss(matrix, "t", pairs)
    assert loss is not None
    assert loss[0] == stats.clopper_pearson(4, 8), "of the eight that are right on x: 2, 3, 4, 5"
    assert loss[1].tolist() == mask(N, 1, 2, 3, 4, 5).astype(float).tolist()


def test_the_split_minimum_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    draft = Draft(Y, [T], [Source("s")], [Attack("a"), Attack("b")])
    draft.fool("s", "a", "t", mask(N, 0, 2, 4, 1))  # even places: 3 of 5, odd: 1 of 5
    draft.fool("s", "b", "t", mask(N, 1, 3, 5, 0))  # even: 1, odd: 3
    # on the odd half b is worst, so the even half is scored with b (1 wrong); on the even half a is worst: 1 wrong of the odd ones
    assert stats.worst_pair_split(draft.matrix(), "t", [("s", "a"), ("s", "b")]) == stats.wilson(8, 10)
    assert stats.worst_pair(draft.matrix(), "t", [("s", "a"), ("s", "b")])[0].value == 0.6  # type: ignore[index]


LABELS = st.lists(st.integers(0, 2), min_size=12, max_size=12).map(np.array)


@given(st.lists(LABELS, min_size=1, max_size=5), LABELS)
def test_identities_of_the_rates(cells: list[np.ndarray], clean: np.ndarray) -> None:
    y = np.arange(12) % 3
    draft = Draft(y, [T], [Source("s")], [Attack(f"a{i}") for i in range(len(cells))])
    draft.clean["t"] = clean
    for i, labels in enumerate(cells):
        draft.cells["s", f"a{i}", "t"] = labels
    matrix, pairs = draft.matrix(), [("s", f"a{i}") for i in range(len(cells))]
    right = clean == y
    for (source, attack), labels in zip(pairs, cells, strict=True):
        robust, transfer = (f(matrix, source, attack, "t") for f in (stats.robust_accuracy, stats.transfer_rate))
        assert robust is not None
        assert transfer is not None
        kept = right.mean() * (1 - transfer.value) if right.any() else 0.0
        repair = ((labels == y) & ~right).sum() / max((~right).sum(), 1)
        assert robust.value == pytest.approx(kept + (1 - right.mean()) * repair)
    case, pair, split = (f(matrix, "t", pairs) for f in (stats.worst_case, stats.worst_pair, stats.worst_pair_split))
    assert isinstance(case, Estimate)
    assert isinstance(pair, tuple)
    assert isinstance(split, Estimate)
    values = {p: float((labels == y).mean()) for p, labels in zip(pairs, cells, strict=True)}
    assert pair[0].value == min(values.values()) == values[pair[1]]
    assert case.value <= pair[0].value + 1e-12, "worst_case must never be above worst_pair"
    assert pair[0].value <= split.value + 1e-12, "a minimum chosen elsewhere is never below the minimum"
    for e in (case, pair[0], split):
        assert 0 <= e.low <= e.value + 1e-12
        assert e.value - 1e-12 <= e.high <= 1


@pytest.mark.parametrize("levels", [(0.45, 0.6, 0.7), (0.5, 0.5, 0.5), (0.03, 0.5, 0.6)])
def test_bootstrap_intervals_cover_the_worst_of_correlated_cells(levels: tuple[float, ...]) -> None:
    """Also where the cells are equal, so that their minimum sits low, and where the worst is near 0."""
    generator = np.random.default_rng(3)
    n, rho, limits = 120, 0.6, scipy_stats.norm.ppf(levels)
    pairs, held = [("s", f"a{i}") for i in range(3)], []
    for _ in range(200):
        z = math.sqrt(rho) * generator.standard_normal(n)[:, None] + math.sqrt(1 - rho) * generator.standard_normal((n, 3))
        draft = Draft(np.zeros(n, dtype=int), [T], [Source("s")], [Attack(a) for _, a in pairs])
        for i, (s, a) in enumerate(pairs):
            draft.fool(s, a, "t", z[:, i] > limits[i])
        found = stats.worst_pair(draft.matrix(), "t", pairs)
        assert found is not None
        held.append(found[0].low <= min(levels) <= found[0].high)
    assert np.mean(held) >= 0.93


def test_a_worst_pair_of_nothing_right_still_has_an_interval() -> None:
    draft = Draft(Y, [T], [Source("s")], [Attack("a"), Attack("b")])
    for attack in ("a", "b"):
        draft.fool("s", attack, "t", np.ones(N, dtype=bool))
    found = stats.worst_pair(draft.matrix(), "t", [("s", "a"), ("s", "b")])
    assert found == (stats.wilson(0, 10), ("s", "a")), (
        "no resample of ten failures holds anything else, but 0 of 10 does not prove 0"
    )


# ---------------------------------------------------------------- targets that draw at random

DRAWS = 6


def drawn(right: list[int], clean: list[int]) -> Matrix:
    """A random target; right[i] of 6 draws are right on the adversarial example i, clean[i] of 6 on the clean one."""
    n = len(right)
    draft = Draft(np.arange(n), [Target("t", random=True)], draws=DRAWS)
    draft.fool("s", "a", "t", np.arange(DRAWS) >= np.array(right)[:, None])
    draft.clean["t"] = draft.wrong_where(np.arange(DRAWS) >= np.array(clean)[:, None])
    return draft.matrix()


def test_rates_of_a_random_target_are_means_over_draws() -> None:
    matrix = drawn([6, 3, 0, 2], [6, 6, 3, 0])
    clean, robust, transfer = (
        stats.clean_accuracy(matrix, "t"),
        stats.robust_accuracy(matrix, "s", "a", "t"),
        stats.transfer_rate(matrix, "s", "a", "t"),
    )
    assert clean.value == pytest.approx(15 / 24)
    assert robust is not None
    assert robust.value == pytest.approx(11 / 24)
    assert transfer is not None
    assert transfer.value == pytest.approx((1 * 0 + 1 * 0.5 + 0.5 * 1) / 2.5), "sum p (1 - r/J) / sum p"
    assert transfer.n == 3, "the last one is never right on x"
    survivors = stats.survivors(matrix, "t", [("s", "a")])
    assert survivors is not None
    assert survivors.tolist() == [True, True, False, False]


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_worst_of_k_equals_all_ways_to_resubmit(k: int) -> None:
    right = [6, 5, 3, 1, 0, 2]
    matrix = drawn(right, [6] * 6)
    ways = [np.mean([all(d < r for d in tries) for tries in itertools.combinations(range(DRAWS), k)]) for r in right]
    found = stats.worst_of_k(matrix, "t", ("s", "a"), DRAWS, k)
    assert found is not None
    assert found.value == pytest.approx(np.mean(ways))
    assert found.n == 6
    if k == 1:
        assert found.value == pytest.approx(stats.robust_accuracy(matrix, "s", "a", "t").value)  # type: ignore[union-attr]
    assert stats.worst_of_k(matrix, "t", ("s", "a"), DRAWS, 7) is None, "more tries than draws is not measured"


# ---------------------------------------------------------------- linear models: the whole table has a closed form

SIDE, MU, SIGMA, EPS = 16, 0.02, 0.05, 0.012
EXAMPLES = {"source": 8, "target": 8, "development": 8, "evaluation": 3000}


@lru_cache
def _gaussian(part: str) -> Split:
    n = EXAMPLES[part]
    generator = np.random.default_rng([9, *part.encode()])
    y = np.arange(n) % 2
    x = 0.5 + MU * (2 * y - 1)[:, None] + SIGMA * generator.standard_normal((n, SIDE))
    assert 0.1 < x.min() < x.max() < 0.9, "no wall of the box may bind"
    return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), tuple(f"{part}/{i}" for i in range(n)))


@dataclass(frozen=True)
class TwoGaussians:
    """Two classes around 0.5 -+ MU, the same spread in every direction."""

    classes: ClassVar[tuple[str, ...]] = ("minus", "plus")
    shape: ClassVar[tuple[int, ...]] = (SIDE,)
    eight_bit: ClassVar[bool] = False

    def split(self, part: str) -> Split:
        return _gaussian(part)

    def digest(self) -> str:
        return f"two gaussians {SIDE} {MU} {SIGMA} {EXAMPLES}"


class _Line(nn.Module):
    def __init__(self, w: tuple[float, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        m = (x - 0.5) @ self.w
        return torch.stack([-m, m], 1)


@dataclass(frozen=True)
class Linear:
    """Answers "plus" where w.(x - 0.5) > 0."""

    w: tuple[float, ...]

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def load(self, store: Store) -> nn.Module:
        return _Line(self.w).eval()

    def relax(self) -> Model:
        return self


def line(*quarters: float) -> Linear:
    """Weights that are the same in each quarter of the input."""
    return Linear(tuple(np.repeat(quarters, SIDE // 4).tolist()))


MODELS = {
    "all": line(1.0, 1.0, 1.0, 1.0),
    "tilted": line(2.0, 1.0, 1.0, 0.5),
    "orthogonal": line(1.0, 1.0, -1.0, -1.0),
    "opposite": line(-1.0, -1.0, -1.0, -1.0),
    "half": line(1.0, 0.0, 0.0, 0.0),
}
TARGETS = {name: MODELS[name] for name in ("all", "tilted", "half")}


def lost_margin(source: str, target: str, threat: Threat) -> float:
    """How much of the target's margin an attack on the source takes."""
    s, t = (np.array(MODELS[m].w) for m in (source, target))
    direction = np.sign(s) if threat.norm == "Linf" else s / np.linalg.norm(s)
    return float(threat.eps * (t @ direction))


def closed_form(source: str, target: str, threat: Threat) -> float:
    """P[the margin falls below 0 | it was above]; the margin of a target is N(w.mu, sigma |w|)."""
    t = np.array(MODELS[target].w)
    lost, mean, spread = lost_margin(source, target, threat), MU * t.sum(), SIGMA * np.linalg.norm(t)
    phi = scipy_stats.norm.cdf
    return max(0.0, float((phi((lost - mean) / spread) - phi(-mean / spread)) / phi(mean / spread)))


@lru_cache
def linear_matrix(norm: str, folder: str) -> tuple[Study, Matrix]:
    threat: Threat = Linf(EPS) if norm == "Linf" else L2(4 * EPS)
    attacks = {"FGSM": FGSM(threat), "I_FGSM": I_FGSM(threat), "MI_FGSM": MI_FGSM(threat)}
    white = {"white box": I_FGSM(threat, steps=20)}
    study = Study(TwoGaussians(), MODELS, attacks, TARGETS, white, control="all", shard=1000)
    return study, run(study, store=FileStore(Path(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("linear"))


@pytest.mark.slow  # the default lane has the same table, once, in contracts/test_transfer_matrix.py
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_cell_of_linear_models_is_its_closed_form(norm: str, folder: str) -> None:
    study, matrix = linear_matrix(norm, folder)
    rates = set()
    for source, attack, target in itertools.product(MODELS, study.attacks, TARGETS):
        found, truth = stats.transfer_rate(matrix, source, attack, target), closed_form(source, target, study.threat)
        assert found is not None
        low, high = scipy_stats.binom.ppf([0.0005, 0.9995], found.n, truth) / found.n
        assert low <= found.value <= high, (source, attack, target, found, truth)
        rates.add(round(truth, 3))
    assert len(rates) >= 7, "the table must hold different rates, 0 among them"
    assert 0.0 in rates
    for target in TARGETS:
        accuracy, w = stats.clean_accuracy(matrix, target), np.array(MODELS[target].w)
        truth = float(scipy_stats.norm.cdf(MU * w.sum() / (SIGMA * np.linalg.norm(w))))
        low, high = scipy_stats.binom.ppf([0.0005, 0.9995], accuracy.n, truth) / accuracy.n
        assert low <= accuracy.value <= high


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_corners_of_linear_transfer_are_exact(norm: str, folder: str) -> None:
    study, matrix = linear_matrix(norm, folder)
    for attack in study.attacks:
        orthogonal = matrix.right("orthogonal", attack, "all")
        assert np.array_equal(orthogonal, matrix.clean("all")), "w_t . sign w_s = 0 turns nothing"  # type: ignore[arg-type]
        opposite = matrix.right("opposite", attack, "all")
        assert opposite is not None
        assert (opposite >= matrix.clean("all")).all(), "w_s = -w_t helps the target"
        assert opposite.sum() > matrix.clean("all").sum()
        for target in TARGETS:
            own = matrix.right("itself", "white box", target)
            assert np.array_equal(matrix.right(target, attack, target), own), "w_s = w_t is the white box"  # type: ignore[arg-type]
            for source in MODELS:
                assert (matrix.right(source, attack, target) >= own).all(), "no transfer beats the white box"  # type: ignore[operator]


def test_stored_and_reloaded_the_linear_matrix_is_the_same(folder: str) -> None:
    study, matrix = linear_matrix("Linf", folder)
    again = run(study, store=FileStore(Path(folder)))
    assert again.data.equals(matrix.data)


def test_no_linear_target_shows_a_sign_of_masking(folder: str) -> None:
    """The margin lost to a transfer, w_t . sign w_s, is never more than the white box takes, |w_t|_1."""
    _, matrix = linear_matrix("Linf", folder)
    for target in TARGETS:
        signs = gradient_signs(matrix, target)
        assert {s.id for s in signs} == {"E3", "E4t"}
        assert all(s.status in ("pass", "not_run") and not s.value for s in signs), signs


# ---------------------------------------------------------------- two defences, several seeds


def two_arms(gaps: list[float], n: int = 400) -> Matrix:
    """Targets o0, o1 ... and t0, t1 ...: right under attack on half of the images, ours on `gaps[i]` more of them."""
    names = [f"{arm}{i}" for arm in "ot" for i in range(len(gaps))]
    draft = Draft(np.arange(n) % CLASSES, [Target(name) for name in names])
    order = np.random.default_rng(0).permutation(n)
    for i, gap in enumerate(gaps):
        draft.fool("s", "a", f"t{i}", order >= n // 2)
        draft.fool("s", "a", f"o{i}", order >= n // 2 + round(gap * n))
    return draft.matrix()


def test_ahead_is_the_mean_gap_over_seeds_and_its_interval_holds_both_levels() -> None:
    pairs = [("s", "a")]
    same = stats.ahead(two_arms([0.0] * 3), ["o0", "o1", "o2"], ["t0", "t1", "t2"], pairs)
    assert same == Estimate(0.0, 0.0, 0.0, 400)
    steady = stats.ahead(two_arms([0.1] * 3), ["o0", "o1", "o2"], ["t0", "t1", "t2"], pairs)
    varied = stats.ahead(two_arms([0.0, 0.1, 0.2]), ["o0", "o1", "o2"], ["t0", "t1", "t2"], pairs)
    assert steady is not None
    assert varied is not None
    assert steady.value == pytest.approx(0.1) == pytest.approx(varied.value)
    one_arm = stats.wilson(40, 400)
    assert steady.high - steady.low == pytest.approx(one_arm.high - one_arm.low, rel=0.15), "the images alone"
    assert varied.high - varied.low > 2 * (steady.high - steady.low), "seeds that differ widen it"
    assert varied.low < 0.01
    assert steady.low > 0.05


def test_ahead_takes_the_minimum_of_each_arm_by_itself() -> None:
    draft = Draft(np.arange(10), [Target("o"), Target("t")], attacks=(Attack("a"), Attack("b")))
    draft.fool("s", "a", "o", mask(10, 0, 1))
    draft.fool("s", "b", "o", mask(10, 2))
    draft.fool("s", "a", "t", mask(10, 0))
    draft.fool("s", "b", "t", mask(10, 2, 3, 4, 5, 6))
    found = stats.ahead(draft.matrix(), ["o"], ["t"], [("s", "a"), ("s", "b")])
    assert found is not None
    assert found.value == pytest.approx(0.8 - 0.5)
    with pytest.raises(UsageError, match="as many targets of ours as of theirs, one per seed, got 1 and 2"):
        stats.ahead(draft.matrix(), ["o"], ["t", "o"], [("s", "a")])
