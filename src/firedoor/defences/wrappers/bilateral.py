"""Each pixel becomes the mean of its neighbours that look like it: noise is averaged away, edges stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from firedoor.defences.wrappers.neighbours import weighted_mean
from firedoor.defences.wrappers.transformed import Transformed, needs_images
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["Bilateral"]


@dataclass(frozen=True)
class Bilateral:
    """Bilateral filter over size x size windows, edges replicated; sigma_colour 0, sigma_space 0 or size 1 change nothing.

    A neighbour weighs exp(-d^2 / (2 sigma_space^2) - c^2 / (2 sigma_colour^2)), d being its distance in pixels and c the root mean
    square difference of its channels, in [0,1]. The filter differentiates itself, weights included, so relax is wrap.

    Family: input transformation. Year: 1998.
    Reference: Tomasi and Manduchi 1998, doi:10.1109/ICCV.1998.710815.
    """

    size: int = 5
    sigma_colour: float = 0.1
    sigma_space: float = 1.5

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise SpecError(f"Bilateral: size must be an odd number of pixels, got {self.size}. Try 5.")
        for name in ("sigma_colour", "sigma_space"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"Bilateral: {name} must be 0 or more, got {getattr(self, name)}. Try 0.1 in colour, 1.5 in space.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._filter)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._filter)

    def _filter(self, x: Tensor) -> Tensor:
        needs_images(x, "Bilateral")
        reach = self.size // 2
        if reach == 0 or self.sigma_colour == 0 or self.sigma_space == 0:
            return x
        h, w = x.shape[2:]

        def weight(seen: Tensor, down: int, right: int) -> Tensor:
            own, other = (seen[:, :, i : i + h, j : j + w] for i, j in ((reach, reach), (down, right)))
            far = ((down - reach) ** 2 + (right - reach) ** 2) / (2 * self.sigma_space**2)
            return (-far - (other - own).square().mean(1, keepdim=True) / (2 * self.sigma_colour**2)).exp()

        return weighted_mean(x, F.pad(x, (reach,) * 4, mode="replicate"), self.size, weight)
