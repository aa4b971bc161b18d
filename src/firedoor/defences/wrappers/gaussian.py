"""Blur: what is finer than the window is averaged away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from firedoor.defences.wrappers.transformed import Transformed, needs_images
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["Gaussian"]

WIDEST = 64


@dataclass(frozen=True)
class Gaussian:
    """Gaussian blur of deviation `sigma` pixels, cut at three deviations, edges replicated; sigma 0 changes nothing.

    The filter differentiates itself, so relax is wrap.

    Family: input transformation. Year: 2017.
    Reference: Li and Li 2017, arXiv:1612.07767.
    """

    sigma: float = 0.5

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= WIDEST:
            raise SpecError(f"Gaussian: sigma must be in 0..{WIDEST} pixels, got {self.sigma}. Try 0.5 at 32, 1 at 224.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._blur)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._blur)

    def _blur(self, x: Tensor) -> Tensor:
        needs_images(x, "Gaussian")
        if self.sigma == 0:
            return x
        reach = math.ceil(3 * self.sigma)
        place = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        weight = (-place.square() / (2 * self.sigma**2)).exp()
        weight = (weight / weight.sum()).view(1, 1, 1, -1)
        flat = x.flatten(0, 1)[:, None]
        flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), weight)
        flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), weight.transpose(2, 3))
        return flat.view_as(x)
