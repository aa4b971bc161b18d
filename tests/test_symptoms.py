"""Signs of false security: each fires where it was planted, and none on an honest target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.intervals import significant
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom
from firedoor.symptoms import failed_at_home, gradient_signs, pairs_of
from reading_fakes import Attack, Draft, Source, Target, first

N = 100
Y = np.arange(N) % 10
SOURCES = (Source("twin", "S1"), Source("other", "S2"), Source("seen", "S2", seen=True))
ATTACKS = (
    Attack("noise", "null"),
    Attack("MI", seen=True),
    Attack("DI"),
    Attack("PGD", "white box"),
    Attack("PGD_margin", "white box", objective="margin"),
)
HONEST, HIDDEN = Target("t"), Target("t", relaxed=True, strippable=True)


def draft_of(target: Target, cells: dict[tuple[str, str], np.ndarray]) -> Draft:
    draft = Draft(Y, [target], SOURCES, ATTACKS)
    for (source, attack), fooled in cells.items():
        draft.fool(source, attack, "t", fooled)
    return draft


def signs_of(matrix: Matrix) -> dict[tuple[str, str], Symptom]:
    """By id and effect; a sign of the same id and effect twice would be a defect."""
    found = gradient_signs(matrix, "t")
    keyed = {(s.id, s.effect): s for s in found}
    assert len(keyed) == len(found)
    return keyed


# ---------------------------------------------------------------- the threshold


@pytest.mark.parametrize(
    ("gained", "lost", "n", "fires"),
    [
        (7, 0, 100, False),  # p = 1/128, but 7 discordant images are too few
        (8, 0, 100, True),  # p = 1/256
        (7, 1, 100, False),  # p = 9/256 = .035
        (9, 1, 100, False),  # p = 11/1024 = .0107
        (10, 1, 100, True),  # p = 12/2048 = .0059
        (8, 0, 1600, False),  # 8 of 1,600 is no more than half a point
        (8, 0, 1599, True),
        (0, 50, 100, False),  # the other way round
        (50, 50, 100, False),
        (60, 30, 10_000, False),  # significant, but 0.3 points
    ],
)
def test_significant_at_its_edges(gained: int, lost: int, n: int, fires: bool) -> None:
    assert significant(gained, lost, n) is fires


@given(st.integers(0, 60), st.integers(0, 60))
def test_significant_is_monotone(gained: int, lost: int) -> None:
    """One more image gained, or one less lost, never takes a sign away."""
    if significant(gained, lost, 200):
        assert significant(gained + 1, lost, 200)
        assert lost == 0 or significant(gained, lost - 1, 200)


# ---------------------------------------------------------------- planted


def test_e3_fires_where_transfer_finds_what_the_white_box_misses() -> None:
    signs = signs_of(
        draft_of(
            HONEST, {("other", "MI"): first(N, 40), ("itself", "PGD"): first(N, 10), ("itself", "PGD_margin"): first(N, 20)}
        ).matrix()
    )
    e3 = signs["E3", "mask"]
    assert (e3.status, e3.n, e3.value) == ("fail", N, pytest.approx(0.2)), (
        "the white box is the union of its attacks: 20 are missed"
    )
    assert e3.examples == tuple(f"example/{i:04d}" for i in range(20, 40))
    assert e3.low is not None
    assert e3.high is not None
    assert e3.low < 0.2 < e3.high
    assert "MI from other" in e3.text
    assert ("E3", "note") not in signs, "a target that declares no relax has one view only"


def test_e3_is_a_mask_against_the_best_and_a_note_against_the_naive_gradient() -> None:
    cells = {("other", "MI"): first(N, 40), ("itself", "PGD"): first(N, 90), ("itself, naive", "PGD"): first(N, 5)}
    signs = signs_of(draft_of(HIDDEN, cells).matrix())
    assert signs["E3", "note"].status == "fail", "a declared wrapper may hide its gradient; that is printed"
    assert signs["E3", "mask"].status == "pass", "its relaxed gradient finds it all"
    assert signs["R1", "note"].status == "fail"
    assert signs["R1", "note"].value == pytest.approx(0.85)
    assert "the relaxed gradient" in signs["R1", "note"].text
    turned = cells | {("itself", "PGD"): first(N, 5), ("itself, naive", "PGD"): first(N, 90)}
    signs = signs_of(draft_of(HIDDEN, turned).matrix())
    assert signs["E3", "mask"].status == "pass", "the best white box includes the naive one"
    assert signs["R1", "note"].status == "pass"


def test_e4t_looks_at_the_twin_only() -> None:
    cells = {("itself", "PGD"): first(N, 10), ("twin", "DI"): first(N, 8), ("other", "MI"): first(N, 60)}
    signs = signs_of(draft_of(HONEST, cells).matrix())
    assert (signs["E3", "mask"].status, signs["E4t", "mask"].status) == ("fail", "pass")
    signs = signs_of(draft_of(HONEST, cells | {("twin", "DI"): first(N, 30)}).matrix())
    assert signs["E4t", "mask"].status == "fail"


def test_e4_fires_where_the_stripped_target_gives_it_away() -> None:
    cells = {("itself", "PGD"): first(N, 10), ("itself, naive", "PGD"): first(N, 0), ("stripped", "PGD"): first(N, 50)}
    signs = signs_of(draft_of(HIDDEN, cells).matrix())
    assert (signs["E4", "mask"].status, signs["E4", "note"].status) == ("fail", "fail")
    honest = signs_of(draft_of(HIDDEN, cells | {("itself", "PGD"): first(N, 50)}).matrix())
    assert (honest["E4", "mask"].status, honest["E4", "note"].status) == ("pass", "fail")
    assert ("E4", "mask") not in signs_of(draft_of(HONEST, {("itself", "PGD"): first(N, 50)}).matrix()), "nothing to strip"


def test_one_bad_cell_is_enough() -> None:
    """Beside a cell that fools more images, most of them known to the white box."""
    cells = {("itself", "PGD"): first(N, 60), ("other", "DI"): first(N, 68), ("other", "MI"): first(N, 70, start=30)}
    assert signs_of(draft_of(HONEST, cells).matrix())["E3", "mask"].status == "fail"


def test_only_images_that_are_right_clean_count() -> None:
    draft = draft_of(HONEST, {("other", "MI"): first(N, 40), ("itself", "PGD"): first(N, 10)})
    draft.clean["t"] = draft.wrong_where(first(N, 30, start=10))
    e3 = signs_of(draft.matrix())["E3", "mask"]
    assert (e3.status, e3.n, e3.value) == ("pass", 70, 0.0)


def test_a_draw_of_a_random_target_counts_by_its_majority() -> None:
    target = Target("t", random=True)
    draft = Draft(Y, [target], SOURCES, ATTACKS, draws=5)
    for cell, share in ((("other", "MI"), 3), (("itself", "PGD"), 2)):
        draft.fool(*cell, "t", first(N, 30)[:, None] & (np.arange(5) < share))
    e3 = signs_of(draft.matrix())["E3", "mask"]
    assert (e3.status, e3.value) == ("fail", pytest.approx(0.3)), "wrong in 3 of 5 draws is fooled, in 2 of 5 is not"


def test_void_cells_nulls_and_missing_cells_are_no_challengers() -> None:
    draft = draft_of(HONEST, {("other", "MI"): first(N, 60), ("itself", "PGD"): first(N, 10), ("other", "DI"): first(N, 12)})
    draft.home["other", "MI"] = draft.wrong_where(first(N, 10))  # a tenth of what DI reaches there
    draft.fool("no source", "noise", "t", first(N, 80))
    assert signs_of(draft.matrix())["E3", "mask"].status == "pass"
    nothing = signs_of(draft_of(HONEST, {("itself", "PGD"): first(N, 10)}).matrix())["E3", "mask"]
    assert (nothing.status, nothing.value) == ("not_run", None)
    blind = signs_of(draft_of(HONEST, {("other", "MI"): first(N, 60)}).matrix())["E3", "mask"]
    assert blind.status == "not_run", "without a white box there is nothing to beat"


# ---------------------------------------------------------------- honest


@given(st.integers(0, 2**32), st.booleans())
def test_silent_where_transfer_fools_a_part_of_what_the_white_box_fools(key: int, relaxed: bool) -> None:
    generator = np.random.default_rng(key)
    own = generator.random(N) < generator.random()
    cells = {(s.name, a): own & (generator.random(N) < generator.random()) for s in SOURCES for a in ("MI", "DI")}
    cells |= {("itself", "PGD"): own, ("stripped", "PGD"): own & (generator.random(N) < 0.5), ("itself, naive", "PGD"): own}
    target = HIDDEN if relaxed else HONEST
    if not relaxed:
        del cells["stripped", "PGD"], cells["itself, naive", "PGD"]
    signs = gradient_signs(draft_of(target, cells).matrix(), "t")
    assert {s.id for s in signs} == ({"E3", "E4t", "E4", "R1"} if relaxed else {"E3", "E4t"})
    assert all(s.status == "pass" and s.value == 0 for s in signs), [s for s in signs if s.status != "pass"]


def test_a_few_lucky_images_are_no_sign() -> None:
    """An attack that wins 2 images and loses 10 is a weaker attack, not a sign of hidden gradients."""
    cells = {("itself", "PGD"): first(N, 40), ("other", "MI"): first(N, 32, start=10)}
    e3 = signs_of(draft_of(HONEST, cells).matrix())["E3", "mask"]
    assert (e3.status, e3.value) == ("pass", pytest.approx(0.02))


# ---------------------------------------------------------------- failed at home


def home(best: int, this: int, floor: float | None = 0.0, clean_wrong: int = 0) -> str:
    """What becomes of an attack that fools `this` of 100 at home, where the best fools `best` and noise the share `floor`."""
    draft = draft_of(HONEST, {("other", "MI"): first(N, 50), ("other", "DI"): first(N, 50)})
    draft.home["other", "MI"], draft.home["other", "DI"] = draft.wrong_where(first(N, best)), draft.wrong_where(first(N, this))
    draft.source_clean["other"] = draft.wrong_where(first(N, clean_wrong))
    draft.source_noise["other"] = floor  # type: ignore[assignment]
    return failed_at_home(draft.matrix(), "other", "DI", "t")[0]


@pytest.mark.parametrize(
    ("best", "this", "becomes"),
    [
        (100, 100, ""),
        (100, 95, ""),
        (100, 94, "capped"),
        (100, 50, "capped"),
        (100, 49, "void"),
        (40, 38, ""),
        (40, 37, "capped"),
        (40, 19, "void"),
    ],
)
def test_the_bar_at_home_is_relative_to_the_best_attack(best: int, this: int, becomes: str) -> None:
    assert home(best, this) == becomes


def test_an_attack_that_noise_matches_at_home_is_void() -> None:
    assert home(20, 20, floor=0.05) == ""
    assert home(20, 20, floor=0.15) == "void", "20 of 100 has a lower bound of 13 %"
    assert home(0, 0, floor=None) == "void", "nothing fooled is not above noise, measured or not"
    assert home(0, 0) == "void"


def test_home_counts_images_that_the_source_got_right() -> None:
    assert home(best=60, this=40, clean_wrong=30) == "void", "10 of 70 against 30 of 70"
    assert home(best=100, this=100, clean_wrong=100) == "void", "a source that is never right proves nothing"


def test_nulls_do_not_set_the_bar_at_home() -> None:
    draft = draft_of(HONEST, {("other", "noise"): first(N, 0), ("other", "DI"): first(N, 50)})
    draft.home["other", "noise"], draft.home["other", "DI"] = draft.wrong_where(first(N, 100)), draft.wrong_where(first(N, 40))
    assert failed_at_home(draft.matrix(), "other", "DI", "t") == ("", "")


def test_a_row_with_a_source_per_target_has_its_own_home() -> None:
    draft = Draft(Y, [Target("t"), Target("u")], SOURCES, ATTACKS)
    for target in ("t", "u"):
        for attack in ("MI", "DI"):
            draft.fool("same defence", attack, target, first(N, 10))
    draft.own_home["same defence", "DI", "u"] = draft.wrong_where(first(N, 10))
    matrix = draft.matrix()
    assert failed_at_home(matrix, "same defence", "DI", "t") == ("", "")
    assert failed_at_home(matrix, "same defence", "DI", "u")[0] == "void"
    assert failed_at_home(matrix, "no source", "noise", "t") == ("", ""), "no source, no home"


# ---------------------------------------------------------------- which cells


def test_pairs_are_cells_that_ran_are_no_nulls_and_stand_on_the_rungs() -> None:
    cells = {
        (s, a): first(N, 1)
        for s, a in (("twin", "MI"), ("other", "DI"), ("seen", "MI"), ("seen", "DI"), ("twin", "noise"), ("itself", "PGD"))
    }
    matrix = draft_of(HONEST, cells).matrix()
    assert pairs_of(matrix, "t", ("S1", "S2")) == [("twin", "MI"), ("other", "DI"), ("seen", "MI"), ("seen", "DI")]
    assert pairs_of(matrix, "t", ("S1",)) == [("twin", "MI")]
    assert pairs_of(matrix, "t", ("S1", "S2"), seen=True) == [("seen", "MI")], "both the source and the attack"
    assert pairs_of(matrix, "t", ("S1", "S2"), seen=False) == [("twin", "MI"), ("other", "DI"), ("seen", "DI")]
    assert pairs_of(matrix, "t", ("S5",)) == [("itself", "PGD")]
