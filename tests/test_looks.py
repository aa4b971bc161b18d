"""The count of models that were scored on held-out pairs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from firedoor.errors import StoreError
from firedoor.looks import looked
from firedoor.store import FileStore
from firedoor.study import Study, from_table

TEXT = """
name = "looks"
seen = ["a", "FGSM"]
[data]
type = "Digits"
[threat]
type = "Linf"
eps = 0.1
[architecture]
type = "MLP"
[fit]
epochs = 1
[sources.a]
seed = 1
[sources.b]
seed = 2
[attacks.FGSM]
[attacks.SignNoise]
[targets.undefended]
seed = 3
[targets.other]
seed = 4
"""


def study(**changes: Any) -> Study:
    return from_table(tomllib.loads(TEXT) | changes)


def test_each_model_is_counted_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert looked(study(), store) == "2 models in this store, 2 of them here"
    assert looked(study(), FileStore(tmp_path)) == "2 models in this store, 2 of them here"
    assert looked(study(threat={"type": "Linf", "eps": 0.2}), store).startswith("2 models"), "another budget is no other model"
    third = study(targets={"undefended": {"seed": 3}, "tuned": {"seed": 5}})
    assert looked(third, store) == "3 models in this store, 2 of them here"


def test_other_images_have_a_count_of_their_own(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    looked(study(), store)
    other = study(data={"type": "Digits", "splits": {"train": 600, "development": 100, "evaluation": 100}})
    assert looked(other, store) == "2 models in this store, 2 of them here"


def test_where_nothing_is_held_out_nothing_is_counted(tmp_path: Path) -> None:
    assert looked(study(seen=[]), FileStore(tmp_path)) == ""
    assert looked(study(seen=["a", "b", "FGSM"]), FileStore(tmp_path)) == ""
    assert not (tmp_path / "looks.jsonl").exists()


def test_a_damaged_page_is_an_error_and_no_fresh_count(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for text in ("{", "[]\n", '{"time": 1}\n'):
        (tmp_path / "looks.jsonl").write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            looked(study(), store)
