"""Fewer grey levels: small perturbations are rounded away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from firedoor.defences.wrappers.transformed import Transformed, straight_through
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["BitDepth"]


@dataclass(frozen=True)
class BitDepth:
    """Round each pixel to 2**bits evenly spaced levels, after reading it as 8-bit; 8 bits change nothing.

    wrap has a zero gradient; relax rounds in the forward pass and goes back through the identity.

    Family: input transformation. Year: 2018.
    Reference: Xu et al. 2018, arXiv:1704.01155.
    """

    bits: int = 4

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9):
            raise SpecError(f"BitDepth: bits must be a whole number in 1..8, got {self.bits}. Try 4.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._round)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, straight_through(self._round))

    def _round(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        rounded: Tensor = ((255 * x).round() * top / 255).round() / top
        return rounded
