"""Going on from another network's weights: where it begins, what it leaves alone, what it costs, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from firedoor import Trained, costs
from firedoor.architectures import MLP
from firedoor.attacks import PGD
from firedoor.data.digits import Digits
from firedoor.data.splits import Splits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.pubdef import PubDef
from firedoor.errors import AccessError, ModelRefused, SpecError
from firedoor.models.fine_tuned import FineTuned
from firedoor.protocols import Access
from firedoor.store import FileStore
from firedoor.study import family_of, other_seed
from firedoor.threat import Linf

DATA = Digits(Splits(train=500, evaluation=300, development=50))
FIT = Fit(epochs=3, batch_size=32, lr=0.05)
START = Trained(MLP(32), DATA, replace(FIT, epochs=8), 7, "source")


def answers(recipe: FineTuned | Trained, store: FileStore) -> Tensor:
    return recipe.load(store)(DATA.split("evaluation").x)


def test_it_begins_at_its_start_and_leaves_it_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    before = answers(START, store)
    still = answers(FineTuned(START, DATA, replace(FIT, lr=1e-9, weight_decay=0.0)), store)
    torch.testing.assert_close(still, before, atol=1e-4, rtol=0)
    moved = answers(FineTuned(START, DATA, FIT), store)
    assert float((moved - before).abs().max()) > 0.5
    assert torch.equal(answers(START, store), before)


def test_a_little_training_from_a_start_beats_the_same_from_scratch(tmp_path: Path) -> None:
    store, y = FileStore(tmp_path), DATA.split("evaluation").y
    short = replace(FIT, epochs=1, lr=0.01)
    tuned, scratch = (answers(r, store) for r in (FineTuned(START, DATA, short), Trained(MLP(32), DATA, short)))
    right = [float((a.argmax(1) == y).float().mean()) for a in (tuned, scratch)]
    assert right[0] > right[1] + 0.1, right


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    recipe = FineTuned(START, DATA, FIT)
    one, two = (answers(recipe, FileStore(tmp_path / name)) for name in "ab")
    assert torch.equal(one, two)
    other = other_seed(recipe)
    assert other == replace(recipe, seed=1000), "another seed keeps the start"
    assert not torch.equal(one, answers(other, FileStore(tmp_path / "a")))


def test_its_start_counts_among_what_was_trained_and_its_loss_names_its_family() -> None:
    recipe = FineTuned(START, DATA, replace(FIT, loss=PubDef((START,), PGD(Linf(8 / 255)), DATA)))
    assert costs.trainable([recipe]) == [START, recipe]
    assert family_of(recipe) == "adversarial training"
    assert family_of(FineTuned(START, DATA, FIT)) == "none"
    assert recipe.relax() is recipe
    assert recipe.architecture == START.architecture


@dataclass(frozen=True)
class Start:
    stochastic: bool = False
    access: ClassVar[Access] = Access.GRADIENTS

    def load(self, store: FileStore) -> object:
        return torch.relu


@dataclass(frozen=True)
class Hidden(Start):
    access: ClassVar[Access] = Access.SCORES


def test_starts_that_cannot_be_continued(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="FineTuned needs the weights of its start, which gives SCORES only"):
        FineTuned(Hidden(), DATA, FIT)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="must answer the same each time, got Start"):
        FineTuned(Start(stochastic=True), DATA, FIT)  # type: ignore[arg-type]
    with pytest.raises(ModelRefused, match="needs a start with weights"):
        FineTuned(Start(), DATA, FIT).load(FileStore(tmp_path))  # type: ignore[arg-type]
