"""What a training is said to cost: every part of it, once, and a multiple that is measured and then kept."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from firedoor import costs
from firedoor.costs import costs_of
from firedoor.errors import ModelRefused
from firedoor.memory import Held
from firedoor.store import FileStore
from firedoor.study import Study, from_table

TEXT = """
name = "costs"
seen = ["public", "PGD"]
[data]
type = "Digits"
splits = { train = 200, development = 40, evaluation = 40 }
[threat]
type = "Linf"
eps = 0.1
[architecture]
type = "MLP"
[fit]
epochs = 2
[sources.public]
seed = 1
[attacks.PGD]
steps = 4
[targets.undefended]
seed = 2
[targets.pgd_at]
seed = 3
fit = { loss = { type = "Madry", attack = { type = "PGD", steps = 3, threat = { type = "Linf", eps = 0.1 } } } }
[targets.pubdef]
seed = 4
fit = { loss = { type = "PubDef", sources = ["public"], attack = { type = "PGD", steps = 4, threat = { type = "Linf", eps = 0.1 } } } }
[targets.pair]
type = "Ensemble"
members = ["undefended", "pubdef"]
[targets.snapshots]
type = "Snapshots"
seed = 5
fit = { schedule = "cosine-cycles", cycles = 2 }
[targets.further]
type = "FineTuned"
start = "undefended"
fit = { epochs = 1 }
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, FileStore, dict[str, Any]]:
    study, store = from_table(tomllib.loads(TEXT)), FileStore(tmp_path_factory.mktemp("store"))
    for model in study.targets.values():
        model.load(store)
    failed: list[str] = []
    found = costs_of(study, store, lambda cell, error: failed.append(f"{cell}: {error}"))
    assert not failed
    return study, store, found


def test_passes_count_sources_crafts_and_members_each_once(made: tuple[Study, FileStore, dict[str, Any]]) -> None:
    passes = {name: round(row["train_passes_multiple"], 6) for name, row in made[2].items()}
    assert passes == {
        "undefended": 1,
        "pgd_at": 4,
        "pubdef": 1 + 1 + 4 / 2,  # itself, the source, and 4 gradients per example in the time of two epochs
        "pair": 1 + 4,
        "snapshots": 1,
        "further": 1 + 1 / 2,
    }


def test_multiples_are_measured_once_and_the_control_is_one(made: tuple[Study, FileStore, dict[str, Any]]) -> None:
    study, store, found = made
    assert found["undefended"]["train_multiple"] == 1
    assert all(row["train_multiple"] > 0 and row["train_seconds"] > 0 for row in found.values())
    assert found["pair"]["train_multiple"] == pytest.approx(1 + found["pubdef"]["train_multiple"])
    again = costs_of(study, FileStore(store.root), lambda cell, error: None)
    assert {n: row["train_multiple"] for n, row in again.items()} == {n: row["train_multiple"] for n, row in found.items()}


def test_memory_counts_what_is_held_at_once() -> None:
    held = Held()
    before = torch.zeros(1000)  # 4,000 bytes that were there
    with held:
        for _ in range(5):
            a = before + 1  # one alive, and the next
        b = a.view(10, 100)  # no memory of its own
        b.add_(1)
        before.mul_(2)
    assert (held.now, held.most) == (4000, 8000)
    with held:
        a.add_(1)
        c = torch.cat((a, a))
    assert (held.now, held.most) == (12000, 12000)
    del a, b, c
    assert held.now == 0


def test_the_memory_of_a_training_holds_weights_gradients_momentum_and_what_the_loss_needs(
    made: tuple[Study, FileStore, dict[str, Any]],
) -> None:
    study, store, found = made
    weights = 4 * sum(p.numel() for p in store.live(study.targets["undefended"]).parameters())
    plain, pair = found["undefended"], found["pair"]
    assert 3 * weights < plain["train_memory_bytes"] < 4 * weights + 4 * 128 * 64 * 10
    assert pair["train_memory_bytes"] == max(plain["train_memory_bytes"], found["pubdef"]["train_memory_bytes"])
    assert weights < plain["inference_memory_bytes"] < pair["inference_memory_bytes"] < 3 * plain["inference_memory_bytes"]
    again = costs_of(study, FileStore(store.root), lambda cell, error: None)
    assert again["pgd_at"]["train_memory_bytes"] == found["pgd_at"]["train_memory_bytes"] >= plain["train_memory_bytes"]


def test_timing_leaves_the_stored_network_as_it_is(made: tuple[Study, FileStore, dict[str, Any]]) -> None:
    study, store, _ = made
    recipe: Any = study.targets["pgd_at"]
    before = {k: v.clone() for k, v in store.live(recipe).state_dict().items()}
    clock = costs._training_clock(recipe, store)
    assert clock() > 0
    after = FileStore(store.root).live(recipe).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_step_of_pace_makes_the_passes_of_a_training(made: tuple[Study, FileStore, dict[str, Any]]) -> None:
    study, store, _ = made
    recipe: Any = study.targets["pgd_at"]
    step = recipe.fit.pace(recipe.begin(store), recipe.data.split("target"), store, recipe.seed)
    assert [step(), step()] == [4, 4]


def test_a_training_that_cannot_be_timed_keeps_the_time_of_the_run(
    made: tuple[Study, FileStore, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store, _ = made
    recipe: Any = study.targets["further"]

    def breaks(recipe: Any, store: FileStore) -> Any:
        raise ModelRefused("training needs a finite loss")

    monkeypatch.setattr(costs, "_training_clock", breaks)
    other = replace(recipe.fit, lr=recipe.fit.lr / 2)
    assert costs._multiple(replace(recipe, fit=other), "model", 1.0, 3.0, study.targets["undefended"], store) > 0


def test_what_was_not_made_costs_nothing_yet(tmp_path: Path) -> None:
    study = from_table(tomllib.loads(TEXT))
    store = FileStore(tmp_path)
    study.targets["undefended"].load(store)
    row = costs._training(study.targets["pgd_at"], study, store)
    assert row == []
