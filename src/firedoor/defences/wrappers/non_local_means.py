"""Each pixel becomes the mean of those whose surroundings look like its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from firedoor.defences.wrappers.neighbours import weighted_mean
from firedoor.defences.wrappers.transformed import Transformed, needs_images, straight_through
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["NonLocalMeans"]


@dataclass(frozen=True)
class NonLocalMeans:
    """Mean over a window of `search` x `search` pixels, edges replicated; strength 0 or search 1 change nothing.

    A pixel there weighs exp(-m / h^2), h = strength / 255 and m the mean square difference between the `patch` x `patch` pixels
    around it and those around the centre, over all channels. wrap has the whole gradient; relax takes the weights as constant,
    since they turn too fast to be followed; relax_by_identity goes back through the identity.

    Family: input transformation. Year: 2005.
    Reference: Buades et al. 2005, doi:10.1109/CVPR.2005.38; as a defence Xu et al. 2018, arXiv:1704.01155.
    """

    search: int = 11
    patch: int = 3
    strength: float = 4.0

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, usual in (("search", 11), ("patch", 3)):
            side = getattr(self, name)
            if side < 1 or side % 2 == 0:
                raise SpecError(f"NonLocalMeans: {name} must be an odd number of pixels, got {side}. Try {usual}.")
        if not 0 <= self.strength < math.inf:
            raise SpecError(f"NonLocalMeans: strength must be 0 or more, got {self.strength}. Try 4 levels of 255.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, lambda x: self._mean(x, x))

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, lambda x: self._mean(x, x.detach()))

    def relax_by_identity(self, model: Classifier, store: Store | None = None) -> Classifier:
        """The same values, and back through the identity."""
        return Transformed(model, straight_through(lambda x: self._mean(x, x)))

    def _mean(self, x: Tensor, like: Tensor) -> Tensor:
        """The weighted means of the pixels of x, with the weights that `like` gives."""
        needs_images(x, "NonLocalMeans")
        if self.strength == 0 or self.search == 1:
            return x
        reach, edge = self.search // 2, self.patch // 2
        seen = F.pad(like, (reach + edge,) * 4, mode="replicate")
        h, w = like.shape[2] + 2 * edge, like.shape[3] + 2 * edge

        def weight(seen: Tensor, down: int, right: int) -> Tensor:
            own, other = (seen[:, :, i : i + h, j : j + w] for i, j in ((reach, reach), (down, right)))
            unlike = F.avg_pool2d((other - own).square().mean(1, keepdim=True), self.patch, stride=1)
            return (-unlike * (255 / self.strength) ** 2).exp()

        return weighted_mean(x, seen, self.search, weight)
