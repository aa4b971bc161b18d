"""For objectives that only attack what may reject its input: a detector around each network of the contract, that rejects nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor.protocols import Access, Attack, Classifier, Semantics
from firedoor.threat import Threat

__all__ = ["Lenient", "OnDetector"]


class Lenient(nn.Module):
    """The logits of a network and a last one below them; the score asks the network, and is never near the threshold.

    So the closed forms of the network are those of the detector, and what is asked twice is counted twice.
    """

    threshold = 1.0

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.training = False
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(n, k+1)."""
        logits = self.inner(x)
        return torch.cat([logits, logits.amin(1, keepdim=True) - 1], 1)

    def score(self, x: Tensor) -> Tensor:
        """(n,), 0 or, where a logit is NaN, NaN."""
        return 0 * self.inner(x).sum(1)


@dataclass(frozen=True)
class OnDetector:
    """An attack with a detector put around whatever it is given."""

    attack: Attack

    @property
    def threat(self) -> Threat:
        return self.attack.threat

    @property
    def needs(self) -> Access:
        return self.attack.needs

    @property
    def semantics(self) -> Semantics:
        return self.attack.semantics

    @property
    def gradients(self) -> int:
        return self.attack.gradients

    @property
    def queries(self) -> int:
        return self.attack.queries

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return self.attack(Lenient(model), x, y)
