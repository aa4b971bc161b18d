"""Signs E6 to E16: each says what was planted in the matrix or its facts, and no note decides a verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firedoor.evidence import evidence_of
from firedoor.matrix import Matrix
from firedoor.protocols import Symptom
from firedoor.transfer_signs import better_than_noise, transfer_signs
from firedoor.verdict import judge
from reading_fakes import CLASSES, Attack, Draft, Source, Target, first

N = 100
Y = np.arange(N) % CLASSES
SOURCES = (Source("public", "S0"), Source("twin", "S1"), Source("other", "S2"), Source("seen", "S2", seen=True))
ATTACKS = (Attack("noise", "null"), Attack("MI", seen=True), Attack("DI"), Attack("PGD", "white box"))
NAMES = {
    "E6": "mistakes",
    "E7": "null attack",
    "E8": "equal strength",
    "E9": "equal effort",
    "E11": "seen sources",
    "E12": "seed twin",
    "E13": "own recipe",
    "E14": "best of N",
    "E15": "selection",
    "E16": "denominators",
}


def draft_of(cells: dict[tuple[str, str], np.ndarray], target: Target | None = None) -> Draft:
    draft = Draft(Y, [target or Target("t")], SOURCES, ATTACKS)
    for (source, attack), fooled in cells.items():
        draft.fool(source, attack, "t", fooled)
    return draft


def sign(matrix: Matrix, id: str, target: str = "t") -> Symptom:
    (found,) = [s for s in transfer_signs(matrix, target) if s.id == id]
    return found


def facts(matrix: Matrix, **changes: Any) -> Matrix:
    return Matrix(matrix.data, {**matrix.meta, **changes})


PLAIN = {(s.name, a): first(N, 40) for s in SOURCES for a in ("MI", "DI")} | {("itself", "PGD"): first(N, 90)}


def test_each_sign_is_there_once_with_its_name_and_is_a_note() -> None:
    found = transfer_signs(draft_of(PLAIN).matrix(), "t")
    assert [s.id for s in found] == ["E6", "E7", "E8", "E9", "E10", "E11", "E12", "E13", "E14", "E15", "E16"]
    assert {s.id: s.name for s in found if s.id != "E10"} == NAMES
    assert {s.effect for s in found} == {"note"}
    assert all(s.text for s in found)


def test_nothing_measured_is_not_run_and_never_a_pass() -> None:
    found = {s.id: s for s in transfer_signs(draft_of({}).matrix(), "t")}
    for id in ("E6", "E7", "E8", "E11", "E12", "E13", "E14"):
        assert (found[id].status, found[id].value) == ("not_run", None), id


# ---------------------------------------------------------------- E6


def test_mistakes_are_split_by_what_the_source_says() -> None:
    draft = draft_of({("other", "DI"): first(N, 40)})  # the target says y + 1
    says = np.where(first(N, 30), (Y + 1) % CLASSES, (Y + 2) % CLASSES)
    draft.home["other", "DI"] = says
    e6 = sign(draft.matrix(), "E6")
    assert (e6.value, e6.n) == (0.75, 40), "30 of 40 fooled answers are the source's own"
    assert "30% are the source's mistake, 10% another mistake, 60% right" in e6.text
    assert e6.low is not None
    assert e6.high is not None
    assert e6.low < 0.75 < e6.high


def test_mistakes_that_are_no_change_of_a_right_answer_do_not_count() -> None:
    draft = draft_of({("other", "DI"): first(N, 40)})
    draft.clean["t"] = draft.wrong_where(first(N, 20))
    assert sign(draft.matrix(), "E6").n == 20
    draft.home["other", "DI"] = np.full(N, -1)
    assert sign(draft.matrix(), "E6").status == "not_run", "a source that did not answer has no mistake to share"


def test_mistakes_of_a_source_per_target() -> None:
    draft = Draft(Y, [Target("t"), Target("u")], SOURCES, ATTACKS)
    for target in ("t", "u"):
        draft.fool("same defence", "DI", target, first(N, 40))
    draft.own_home["same defence", "DI", "u"] = (Y + 2) % CLASSES
    matrix = draft.matrix()
    assert [sign(matrix, "E6", t).value for t in ("t", "u")] == [1.0, 0.0]


# ---------------------------------------------------------------- E7


def against(attack: int, noise: int, **cells: np.ndarray) -> Matrix:
    """DI fools `attack` images that noise does not, noise `noise` others."""
    draft = draft_of({("other", "DI"): first(N, attack)} | {("other", a): f for a, f in cells.items()})
    draft.fool("no source", "noise", "t", first(N, noise, start=N - noise))
    draft.noise["t"] = draft.wrong_where(np.zeros(N, dtype=bool))[None]
    return draft.matrix()


@pytest.mark.parametrize(
    ("attack", "noise", "status"), [(8, 0, "pass"), (7, 0, "fail"), (0, 0, "fail"), (30, 10, "pass"), (20, 15, "fail")]
)
def test_an_attack_must_do_significantly_better_than_the_best_null(attack: int, noise: int, status: str) -> None:
    e7 = sign(against(attack, noise), "E7")
    assert (e7.status, e7.n) == (status, N), e7.text
    assert better_than_noise(against(attack, noise), "t") == {"DI": status == "pass"}


def test_every_null_is_a_bar_and_the_noise_floor_is_one() -> None:
    draft = draft_of({("other", "DI"): first(N, 30), ("other", "noise"): first(N, 28)})
    assert sign(draft.matrix(), "E7").status == "fail", "a null that asks a source"
    draft = draft_of({("other", "DI"): first(N, 30)})
    assert sign(draft.matrix(), "E7").status == "pass"
    draft.noise["t"] = np.stack([draft.wrong_where(first(N, k)) for k in (0, 29, 0)])
    assert sign(draft.matrix(), "E7").status == "fail", "one draw of sign noise"


def test_an_attack_is_judged_by_its_best_cell_and_named_where_it_fails() -> None:
    draft = draft_of({("other", "DI"): first(N, 40), ("twin", "DI"): first(N, 2), ("other", "MI"): first(N, 3)})
    draft.targets = [Target("t"), Target("u")]
    draft.fool("other", "DI", "u", first(N, 1))
    matrix = draft.matrix()
    e7 = sign(matrix, "E7")
    assert (e7.status, e7.value) == ("fail", 1)
    assert "1 of 2 attacks (MI)" in e7.text
    assert e7.text.startswith("no better than noise"), "t is the control"
    assert sign(matrix, "E7", "u").text.startswith("not distinguishable from noise")


def test_too_few_images_decide_nothing() -> None:
    draft = draft_of({("other", "DI"): first(N, 40)})
    draft.clean["t"] = draft.wrong_where(first(N, 93))
    assert sign(draft.matrix(), "E7").status == "not_run"


# ---------------------------------------------------------------- E8, E9


def strength(**l2: float) -> dict[str, dict[str, float]]:
    return {key: {"l2": v, "linf": 8 / 255, "saturated": 0.25} for key, v in l2.items()}


@pytest.mark.parametrize(
    ("l2", "status", "value"),
    [
        ({"other|MI|*": 1.0, "other|DI|*": 0.9}, "pass", 0.1),
        ({"other|MI|*": 1.0, "other|DI|*": 0.89}, "fail", 0.11),
        ({"other|MI|*": 1.0, "twin|DI|*": 0.5}, "pass", 0.0),  # not on the same source
        ({"other|MI|*": 1.0, "other|noise|*": 3.0, "other|PGD|*": 9.0}, "pass", 0.0),  # neither is compared
        ({"other|MI|*": 1.0, "other|DI|*": 1.0, "other|DI|t": 0.5}, "fail", 0.5),  # its own row before that of all targets
        ({"other|MI|*": 1.0, "other|DI|u": 0.5}, "pass", 0.0),  # another target's
        ({"other|MI|*": 1.0, "other|DI|*": 0.0}, "fail", 1.0),
        ({"other|MI|*": 0.0, "other|DI|*": 0.0}, "pass", 0.0),
    ],
)
def test_attacks_on_one_source_are_compared_at_equal_l2(l2: dict[str, float], status: str, value: float) -> None:
    e8 = sign(facts(draft_of(PLAIN).matrix(), strength=strength(**l2)), "E8")
    assert (e8.status, e8.threshold) == (status, 0.1), e8.text
    assert e8.value == pytest.approx(value)
    assert "8.0 to 8.0 levels" in e8.text
    assert "25%" in e8.text
    assert ("not compared at equal strength" in e8.text) is (status == "fail")


def test_effort_is_shown_and_missing_effort_is_a_finding() -> None:
    matrix = draft_of(PLAIN).matrix()
    dear = [{**a, "G": 210} if a["name"] == "DI" else a for a in matrix.meta["attacks"]]
    e9 = sign(facts(matrix, attacks=dear), "E9")
    assert (e9.status, e9.value) == ("pass", 0)
    assert "10 (MI) to 210 (DI)" in e9.text, "the white box and the nulls are not among those that are compared"
    silent = [{**a, "G": None} if a["name"] == "DI" else a for a in matrix.meta["attacks"]]
    assert (sign(facts(matrix, attacks=silent), "E9").status, sign(facts(matrix, attacks=silent), "E9").value) == ("fail", 1)


# ---------------------------------------------------------------- E10


def leakage(matrix: Matrix, **leaked: dict[str, list[str]]) -> dict[str, Symptom]:
    found = [s for s in transfer_signs(facts(matrix, leaked=leaked), "t") if s.id == "E10"]
    assert [s.effect for s in found] == ["cap", "note"]
    return {s.effect: s for s in found}


def test_leaked_images_cap_where_the_target_or_its_defence_saw_them() -> None:
    matrix = draft_of(PLAIN).matrix()
    clean = leakage(matrix, targets={"t": []}, sources={"other": []}, defences={})
    assert {s.status for s in clean.values()} == {"pass"}
    assert {s.value for s in clean.values()} == {0.0}
    for kind in ("targets", "defences"):
        found = leakage(matrix, **{kind: {"t": ["example/0003", "example/0001"], "u": ["example/0009"]}})
        assert (found["cap"].status, found["note"].status) == ("fail", "pass")
        assert (found["cap"].value, found["cap"].examples) == (0.02, ("example/0001", "example/0003"))
        assert "trained on the evaluation images" in found["cap"].text


def test_leaked_images_of_a_source_are_a_note_if_it_was_used() -> None:
    found = leakage(draft_of(PLAIN).matrix(), sources={"other": ["example/0005"], "nobody": ["example/0006"]})
    assert (found["cap"].status, found["note"].status) == ("pass", "fail")
    assert found["note"].examples == ("example/0005",)
    assert "other" in found["note"].text


def test_what_was_not_compared_is_not_run_and_blocks_nothing() -> None:
    e10 = sign(draft_of(PLAIN).matrix(), "E10")
    assert (e10.status, e10.effect) == ("not_run", "note")


# ---------------------------------------------------------------- E11, E12, E13


def test_unseen_sources_are_compared_with_seen_ones_on_the_same_attacks() -> None:
    cells = {("seen", "MI"): first(N, 10), ("other", "MI"): first(N, 40), ("public", "MI"): first(N, 5)}
    e11 = sign(draft_of(cells).matrix(), "E11")
    assert (e11.status, e11.value, e11.n) == ("fail", 0.3, N)
    assert e11.text.startswith("overfits the sources it saw: MI from 'other'")
    assert e11.examples == tuple(f"example/{i:04d}" for i in range(10, 30))
    assert sign(draft_of(cells | {("seen", "MI"): first(N, 40)}).matrix(), "E11").status == "pass"
    other_attack = draft_of({("seen", "MI"): first(N, 10), ("other", "DI"): first(N, 40)})
    assert sign(other_attack.matrix(), "E11").status == "not_run", "no attack in common"
    own = draft_of({("seen", "MI"): first(N, 10), ("same defence", "MI"): first(N, 90), ("twin", "MI"): first(N, 10)})
    assert sign(own.matrix(), "E11").status == "pass", "the defence's own recipe is E13"


def test_the_twin_is_reported_with_its_interval() -> None:
    e12 = sign(draft_of(PLAIN | {("twin", "DI"): first(N, 60)}).matrix(), "E12")
    assert (e12.status, e12.value, e12.n) == ("pass", 0.6, N)
    assert "DI from the twin 'twin'" in e12.text
    assert e12.low is not None
    assert e12.high is not None
    assert e12.low < 0.6 < e12.high


def test_the_own_recipe_is_compared_with_public_sources() -> None:
    e13 = sign(draft_of(PLAIN | {("same defence", "DI"): first(N, 60)}).matrix(), "E13")
    assert (e13.status, e13.value) == ("fail", 0.2)
    assert e13.text.startswith("leans on the recipe being secret")
    for k in (20, 40, 47):  # 7 images are too few
        assert sign(draft_of(PLAIN | {("same defence", "DI"): first(N, k)}).matrix(), "E13").status == "pass"
    assert sign(draft_of(PLAIN).matrix(), "E13").status == "not_run"


def test_cells_that_failed_at_home_are_no_witnesses() -> None:
    draft = draft_of(PLAIN | {("same defence", "DI"): first(N, 90), ("same defence", "MI"): first(N, 10)})
    draft.own_home["same defence", "DI", "t"] = draft.wrong_where(first(N, 10))
    assert sign(draft.matrix(), "E13").status == "pass"


# ---------------------------------------------------------------- E14, E15, E16


def test_best_of_n_is_the_union_over_sources_beside_the_mean() -> None:
    cells = {(s, "DI"): first(N, 10, start=10 * i) for i, s in enumerate(("public", "twin", "other"))}
    e14 = sign(draft_of(cells | {("other", "MI"): first(N, 20)}).matrix(), "E14")
    assert (e14.value, e14.n) == (0.3, N)
    assert "DI from any of 3 sources turns 30%; the mean over sources is 10%" in e14.text
    assert e14.low is not None
    assert e14.high is not None
    assert e14.low < 0.3 < e14.high


def test_the_white_box_row_is_said_to_be_chosen_by_its_outcome() -> None:
    e15 = sign(draft_of(PLAIN).matrix(), "E15")
    assert (e15.status, e15.value) == ("pass", 1)
    assert "best of 1 attacks" in e15.text


def test_denominators_are_counted() -> None:
    draft = draft_of(PLAIN)
    draft.clean["t"] = draft.wrong_where(first(N, 10))
    draft.source_clean["other"] = draft.wrong_where(first(N, 10, start=5))
    e16 = sign(draft.matrix(), "E16")
    assert (e16.status, e16.value, e16.n) == ("pass", 0.9, N)
    assert "n_all 100, n_target_ok 90, n_both_ok 85 to 90 over 4 sources" in e16.text


# ---------------------------------------------------------------- random targets, verdicts


def test_a_random_target_counts_by_its_majority() -> None:
    draft = Draft(Y, [Target("t", random=True)], SOURCES, ATTACKS, draws=5)
    for cell, fooled in (("twin", 3), ("other", 2)):
        draft.fool(cell, "DI", "t", first(N, 30)[:, None] & (np.arange(5) < fooled))
    found = {s.id: s for s in transfer_signs(draft.matrix(), "t")}
    assert found["E7"].status == "pass", "the twin turns the majority of draws of 30 images"
    assert found["E12"].value == pytest.approx(0.18), "a rate is a mean over draws"
    assert "twin" in found["E12"].text


@pytest.mark.parametrize("rate", [0, 10, 40, 90])
def test_no_note_decides_a_verdict(rate: int) -> None:
    cells = {(s, a): first(N, rate) for s in ("public", "twin", "other", "same defence") for a in ("MI", "DI")}
    draft = draft_of(cells | {("seen", "MI"): first(N, 0), ("itself", "PGD"): first(N, 90)})
    matrix = facts(draft.matrix(), strength=strength(**{"other|MI|*": 1.0, "other|DI|*": 0.1}))
    evidence = evidence_of(matrix, "t", ())
    ids = {s.id for s in evidence.symptoms}
    assert ids >= set(NAMES) | {"E10"}
    without = replace(evidence, symptoms=tuple(s for s in evidence.symptoms if s.id not in set(NAMES) | {"E10"}))
    assert judge(evidence, 0.5) == judge(without, 0.5)


def test_a_leak_of_the_target_stands_between_it_and_good_news() -> None:
    matrix = facts(draft_of(PLAIN).matrix(), leaked={"targets": {"t": ["example/0001"]}})
    capped = [s.id for s in evidence_of(matrix, "t", ()).symptoms if s.effect == "cap" and s.status == "fail"]
    assert capped == ["E10"]
