"""Rungs S3 and S4 in a study: each target that stands is trained again, and copied by its answers; both attack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import firedoor as fd
from firedoor.errors import SpecError
from firedoor.evidence import evidence_of
from firedoor.plan import plan
from firedoor.store import FileStore
from firedoor.study import SAME_DEFENCE, STOLEN, Study, from_table, load, to_toml

TABLE = {
    "data": {"type": "Digits"},
    "threat": {"type": "Linf", "eps": "16/255"},
    "architecture": {"type": "MLP", "width": 16},
    "fit": {"epochs": 2},
    "seen": [],
    "bar": 0.9,
    "sources": {"other": {"seed": 5}},
    "attacks": {"FGSM": {}, "SignNoise": {}},
    "white_box": {"I_FGSM": {}},
    "targets": {"plain": {}, "wide": {"architecture": {"type": "MLP", "width": 24}}},
    "stolen": {"queries": 300, "seed": 9},
}


def test_a_study_steals_the_targets_that_stand(tmp_path: Path) -> None:
    study = from_table(TABLE)
    store = FileStore(tmp_path / "store")
    matrix = fd.run(study, store)
    assert study.rung(STOLEN, "wide") == "S4"
    for target in study.targets:
        assert matrix.right(STOLEN, "FGSM", target) is not None, "the copy attacked its target"
        assert matrix.right(STOLEN, "SignNoise", target) is None, "nulls need no copy"
        assert "S4" in evidence_of(matrix, target, ()).rungs
    strict = fd.run(from_table({**TABLE, "bar": 0.0001, "threat": {"type": "Linf", "eps": "128/255"}}), store)
    assert strict.right(STOLEN, "FGSM", "plain") is None
    assert "S0 to S3 already broke it" in strict.meta["reasons"][f"{STOLEN}|*|plain"]


def test_a_study_may_leave_the_same_defence_out(tmp_path: Path) -> None:
    table = {k: v for k, v in TABLE.items() if k != "stolen"}
    whole, short = from_table(table), from_table({**table, "same_defence": False})
    s3 = [
        {r["work"]: r["to_do"] for r in plan(s, str(tmp_path / "none"), 1)["rows"]}["craft for rung S3, at most"]
        for s in (whole, short)
    ]
    assert s3[0] > s3[1] == 0
    matrix = fd.run(short, FileStore(tmp_path / "store"))
    assert matrix.right(SAME_DEFENCE, "FGSM", "wide") is None
    assert matrix.meta["reasons"][f"{SAME_DEFENCE}|*|wide"] == "the study leaves rung S3 out"
    assert fd.run(whole, FileStore(tmp_path / "store")).right(SAME_DEFENCE, "FGSM", "wide") is not None


def test_a_target_that_is_named_meets_the_same_defence_though_it_is_broken(tmp_path: Path) -> None:
    table = {k: v for k, v in TABLE.items() if k != "stolen"} | {"bar": 0.0001, "threat": {"type": "Linf", "eps": "128/255"}}
    store, named = FileStore(tmp_path / "store"), from_table({**table, "same_defence": ["wide"]})
    matrix = fd.run(from_table(table), store)
    assert matrix.right(SAME_DEFENCE, "FGSM", "wide") is None
    assert "S0 to S2 already broke it" in matrix.meta["reasons"][f"{SAME_DEFENCE}|*|wide"]
    matrix = fd.run(named, store)
    assert matrix.right(SAME_DEFENCE, "FGSM", "wide") is not None
    assert matrix.right(SAME_DEFENCE, "FGSM", "plain") is None
    (tmp_path / "study.toml").write_text(to_toml(named))
    assert load(str(tmp_path / "study.toml")).same_defence == ("wide",)


@pytest.mark.parametrize("wrong", [["wid"], "wide", 1, [1]])
def test_a_wrong_choice_of_the_same_defence_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match="same_defence"):
        from_table({**TABLE, "same_defence": wrong})


def test_the_stolen_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    study = from_table(TABLE)
    file = tmp_path / "study.toml"
    file.write_text(to_toml(study))
    assert load(file) == study
    assert from_table({k: v for k, v in TABLE.items() if k != "stolen"}).stolen is None


def test_a_stolen_source_stands_on_s4_for_its_target_alone() -> None:
    table = {**TABLE, "sources": {"copy": {"type": "Stolen", "target": "wide", "queries": 300}}}
    study = from_table(table)
    assert study.rung("copy", "wide") == "S4"
    assert study.rung("copy", "plain") == "S2"


def test_what_cannot_be_stolen_with_is_refused() -> None:
    study = from_table(TABLE)
    with pytest.raises(SpecError, match="stolen must be a recipe with a target, such as Stolen, got Trained"):
        Study(study.data, study.sources, study.attacks, study.targets, stolen=study.targets["plain"])


def test_another_backward_pass_of_the_target_is_the_target() -> None:
    sources = {"same": {"type": "LinBP", "model": "wide"}, "twin": {"type": "LinBP", "model": "other"}, "other": {"seed": 5}}
    study = from_table({**TABLE, "sources": sources})
    assert study.rung("same", "wide") == "S5"
    assert study.rung("twin", "plain") == "S1"
    assert study.rung("twin", "wide") == "S2"
