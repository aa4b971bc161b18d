"""Making examples: what an attack does to the images it is given reaches nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from firedoor import Trained
from firedoor.architectures import MLP
from firedoor.attacks import FGSM
from firedoor.craft import Craft
from firedoor.data.digits import Digits
from firedoor.data.splits import Splits
from firedoor.defences.fit import Fit
from firedoor.protocols import Access, Classifier, Semantics
from firedoor.store import FileStore
from firedoor.threat import Linf, Threat

DATA = Digits(Splits(train=100, evaluation=40))
THREAT = Linf(40 / 255)
MODEL = Trained(MLP(8), DATA, Fit(epochs=1))


@dataclass(frozen=True)
class Erasing:
    """Returns what FGSM does, and leaves nothing of its arguments."""

    threat: Threat = THREAT
    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    queries: ClassVar[int] = 0
    gradients: ClassVar[int] = 1

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        x_adv = FGSM(self.threat)(model, x, y)
        x.zero_()
        y.zero_()
        return x_adv


def test_an_attack_may_write_to_its_arguments(tmp_path: Path) -> None:
    store, split = FileStore(tmp_path), DATA.split("evaluation")
    x, y = split.x.clone(), split.y.clone()
    crafted = store.craft(Craft(MODEL, Erasing(), DATA))
    assert torch.equal(crafted.x, store.craft(Craft(MODEL, FGSM(THREAT), DATA)).x)
    again = DATA.split("evaluation")
    assert torch.equal(again.x, x)
    assert torch.equal(again.y, y)
