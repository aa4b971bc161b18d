"""Throw away random pixels and put a smooth picture through the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from firedoor import seed
from firedoor.defences.wrappers.transformed import Transformed, needs_images, straight_through
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["TotalVariation"]

STEP = 2.0  # of the picture, in its units; that of the dual field follows from it


@dataclass(frozen=True)
class TotalVariation:
    """The z that minimises sum(mask (z - x)^2) + weight TV(z); mask keeps each value of x with probability `keep`, drawn anew.

    TV(z) is the summed length of the gradient (forward differences) of each channel. Solved by `steps` steps of the primal-dual
    method of Chambolle and Pock 2011 (doi:10.1007/s10851-010-0251-1). keep 1 and weight 0 change nothing. wrap has no gradient; relax
    goes back through the identity and averages the probabilities of `n` draws.

    Family: input transformation. Year: 2018.
    Reference: Guo et al. 2018, arXiv:1711.00117.
    """

    weight: float = 0.03
    keep: float = 0.5
    steps: int = 100
    n: int = 20

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise SpecError(f"TotalVariation: weight must be 0 or more, got {self.weight}. Try 0.03.")
        if not 0 < self.keep <= 1:
            raise SpecError(f"TotalVariation: keep must be in (0, 1], got {self.keep}. Try 0.5.")
        if self.weight == 0 and self.keep < 1:
            raise SpecError(
                f"TotalVariation: weight 0 needs keep 1, got {self.keep}: nothing fills what is lost. Raise the weight."
            )
        if self.steps < 1 or self.n < 1:
            raise SpecError(f"TotalVariation: steps and n must be 1 or more, got {self.steps} and {self.n}. Try 100 and 20.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._smooth)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Expectation(Transformed(model, straight_through(self._smooth)), self.n)

    @torch.no_grad()
    def _smooth(self, x: Tensor) -> Tensor:
        needs_images(x, "TotalVariation")
        kept = (seed.uniform(x, 0, 1) < self.keep).to(x.dtype)
        if self.weight == 0:
            return x
        dual_step = 1 / (8 * STEP)  # 8 bounds the square of the norm of the gradient
        mean = (kept * x).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).maximum(kept.new_ones(()))
        z = ahead = torch.where(kept > 0, x, mean)
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            down, right = down + dual_step * _down(ahead), right + dual_step * _down(ahead.mT).mT
            over = ((down.square() + right.square()).sqrt() / self.weight).maximum(kept.new_ones(()))
            down, right = down / over, right / over
            moved = z + STEP * (_up(down) + _up(right.mT).mT)
            old, z = z, (moved + 2 * STEP * kept * x) / (1 + 2 * STEP * kept)
            ahead = 2 * z - old
        return z


def _down(z: Tensor) -> Tensor:
    """The difference to the row below; 0 in the last row."""
    out = torch.zeros_like(z)
    out[:, :, :-1] = z[:, :, 1:] - z[:, :, :-1]
    return out


def _up(p: Tensor) -> Tensor:
    """Minus the transpose of `_down`: the divergence."""
    out = p.clone()
    out[:, :, -1] = 0
    out[:, :, 1:] -= p[:, :, :-1]
    return out
