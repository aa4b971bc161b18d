"""Accuracy and smoothness as two terms with a price between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor.defences.losses.ascent import ascend, check_ascent, nearby
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy, kl
from firedoor.protocols import Batch, Classifier, LossFn, Split, Store
from firedoor.threat import Threat

__all__ = ["TRADES"]


@dataclass(frozen=True)
class TRADES:
    """CE(f(x), y) + beta KL(p(x) || p(x')), where x' maximises that KL from x + .001 N(0, 1). Costs steps + 2 passes.

    `step_size` None means eps / 4. beta 0 is plain training: nothing is crafted or forwarded.

    Family: adversarial training. Year: 2019.
    Reference: Zhang et al. 2019, Alg. 1, arXiv:1901.08573.
    """

    threat: Threat
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    inner_mode: Mode = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise SpecError(f"TRADES: beta must be 0 or more and finite, got {self.beta}. Try 6.")
        check_ascent("TRADES", self.threat, self.steps, self.step_size, self.inner_mode)

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""
        return lambda module, batch: self.outer(module, batch, self.craft(module, batch))

    def craft(self, module: nn.Module, batch: Batch) -> Tensor:
        """x' (n, *shape), detached; x itself where beta is 0."""
        if self.beta == 0:
            return batch.x
        with frozen(module, batch, self.inner_mode) as classifier:
            with torch.no_grad():
                clean = classifier(batch.x)
            start = nearby(self.threat, batch.x)
            return ascend(lambda x: kl(classifier(x), clean), start, batch.x, self.threat, self.steps, self.step_size)

    def outer(self, classifier: Classifier, batch: Batch, x_adv: Tensor) -> Tensor:
        """The loss at a given x', a scalar."""
        clean = classifier(batch.x)
        if self.beta == 0:
            return cross_entropy(clean, batch.y).mean()
        return cross_entropy(clean, batch.y).mean() + self.beta * kl(classifier(x_adv), clean).mean()
