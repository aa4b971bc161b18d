"""Noise on the input, drawn afresh at each query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from firedoor import seed
from firedoor.defences.wrappers.transformed import Transformed
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """x + N(0, sigma^2), the input-only form of a random self-ensemble; sigma 0 changes nothing.

    relax averages the probabilities of `n` draws.

    Family: randomisation. Year: 2018.
    Reference: Liu et al. 2018, arXiv:1712.00673.
    """

    sigma: float = 16 / 255
    n: int = 20

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise SpecError(f"Noise: sigma must be 0 or more, got {self.sigma}. Try 16/255.")
        if self.n < 1:
            raise SpecError(f"Noise: n must be 1 or more, got {self.n}. Try 20.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._add)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Expectation(Transformed(model, self._add), self.n)

    def _add(self, x: Tensor) -> Tensor:
        return x + seed.normal(x, self.sigma) if self.sigma else x
