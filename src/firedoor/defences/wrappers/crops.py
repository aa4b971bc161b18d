"""Random crops, enlarged and averaged: a perturbation made for the whole picture is cut and moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from firedoor import seed
from firedoor.defences.wrappers.transformed import Transformed, needs_images
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["Crops"]


@dataclass(frozen=True)
class Crops:
    """log of the mean softmax over `crops` random crops, each of `share` of the side, enlarged to the whole (bilinear).

    The paper takes 30 crops of 90 pixels from 224, with a network trained on crops. share 1 changes nothing. The crops differentiate
    themselves; relax averages `n` of them, so that its gradient is not that of one lucky set.

    Family: input transformation. Year: 2018.
    Reference: Guo et al. 2018, arXiv:1711.00117.
    """

    share: float = 0.75
    crops: int = 30
    n: int = 60

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SpecError(f"Crops: share must be in (0, 1], got {self.share}. Try 0.75.")
        if not 1 <= self.crops <= self.n:
            raise SpecError(f"Crops: 1 <= crops <= n must hold, got {self.crops} and {self.n}. Try 30 and 60.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return self._averaged(model, self.crops)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return self._averaged(model, self.n)

    def _averaged(self, model: Classifier, crops: int) -> Classifier:
        cropped = Transformed(model, self._crop)
        return cropped if self.share == 1 else Expectation(cropped, crops)  # all crops are one: the picture

    def _crop(self, x: Tensor) -> Tensor:
        needs_images(x, "Crops")
        if self.share == 1:
            return x
        rows, columns = (self._axis(x, side) for side in x.shape[2:])
        n, c = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
        crop = x[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        return F.interpolate(crop, x.shape[2:], mode="bilinear", align_corners=False)

    def _axis(self, x: Tensor, side: int) -> Tensor:
        """The rows, or columns, that the crop of each example shows, (n, size)."""
        size = max(1, round(self.share * side))
        return seed.integers(x, side - size + 1)[:, None] + torch.arange(size, device=x.device)
