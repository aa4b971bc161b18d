"""Stopping where a defence is best on attacks that its author may look at: development images, seen sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from firedoor import device
from firedoor.craft import Craft
from firedoor.errors import SpecError
from firedoor.protocols import Attack, Dataset, Model, Store

__all__ = ["EarlyStopping"]

BATCH = 200


@dataclass(frozen=True)
class EarlyStopping:
    """After each `every` epochs: the least share right of clean and transferred development images, over the seen sources.

    The weights of the best epoch are the outcome, and training stops after `patience` looks without a better one. Evaluation images
    are never looked at. Robust accuracy falls again in long adversarial training, so the last epoch is rarely the best one.
    Errors: SpecError for no source, or a number below 1.

    Family: training. Year: 2020.
    Reference: Rice et al. 2020, arXiv:2002.11569.
    """

    sources: tuple[Model, ...]
    attack: Attack
    data: Dataset
    every: int = 1
    patience: int = 5

    def __post_init__(self) -> None:
        if not self.sources:
            raise SpecError("EarlyStopping needs at least one seen source, got none. Name them in `sources`.")
        for name, value in (("every", self.every), ("patience", self.patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"EarlyStopping: {name} must be a whole number of 1 or more, got {value!r}. Try 5.")

    def start(self, store: Store) -> Callable[[nn.Module], float]:
        """Craft, or load, what the seen sources make of the development images; the score of a network in [0, 1]."""
        split = self.data.split("development")
        crafted = [
            Craft(source=s, attack=self.attack, data=self.data, part="development", seed=0).load(store) for s in self.sources
        ]
        views = [split.x, *(c.x for c in crafted)]
        labels = [split.y, *(split.y for _ in crafted)]

        def score(module: nn.Module) -> float:
            modes = [(m, m.training) for m in module.modules()]
            module.eval()
            try:
                with torch.no_grad():
                    rights = [
                        sum(
                            int((module(x[i : i + BATCH].to(device.current())).argmax(1).cpu() == y[i : i + BATCH].cpu()).sum())
                            for i in range(0, len(x), BATCH)
                        )
                        / len(x)
                        for x, y in zip(views, labels, strict=True)
                    ]
            finally:
                for m, training in modes:
                    m.training = training
            return min(rights)

        return score
