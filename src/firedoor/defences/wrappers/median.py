"""Each pixel becomes the median of its window: single outliers vanish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from firedoor.defences.wrappers.transformed import Transformed, needs_images
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["Median"]


@dataclass(frozen=True)
class Median:
    """Median over size x size windows (the lower one for an even count), edges replicated; size 1 changes nothing.

    The filter differentiates itself, so relax is wrap.

    Family: input transformation. Year: 2018.
    Reference: Xu et al. 2018, arXiv:1704.01155.
    """

    size: int = 3

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"Median: size must be 1 or more, got {self.size}. Try 3.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._filter)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._filter)

    def _filter(self, x: Tensor) -> Tensor:
        needs_images(x, "Median")
        if self.size > min(x.shape[2:]):
            raise DataError(f"Median: size {self.size} needs images as large, got {tuple(x.shape[2:])}. Lower it; try 3.")
        before, after = self.size // 2, self.size - 1 - self.size // 2
        padded = F.pad(x, (before, after, before, after), mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values
