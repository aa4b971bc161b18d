"""Training with noise on the input: the cheapest smoother, and what a network behind `Smoothing` needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from firedoor import seed
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["NoiseAugmented"]


@dataclass(frozen=True)
class NoiseAugmented:
    """Mean cross-entropy at x + N(0, sigma^2), drawn afresh for each example and epoch; pixels may leave [0,1].

    sigma 0 is plain training. For a certificate at sigma, train at that sigma (Cohen et al. 2019, arXiv:1902.02918).

    Family: regularisation. Year: 1995.
    Reference: Bishop 1995, doi:10.1162/neco.1995.7.1.108.
    """

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise SpecError(f"NoiseAugmented: sigma must be 0 or more, got {self.sigma}. Try 0.25.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            x = batch.x + seed.normal(batch.x, self.sigma) if self.sigma else batch.x
            return cross_entropy(module(x), batch.y).mean()

        return loss
