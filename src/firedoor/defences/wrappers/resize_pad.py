"""A random size at a random place, drawn afresh at each query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from firedoor import seed
from firedoor.defences.wrappers.transformed import Transformed, needs_images
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["ResizePad"]


@dataclass(frozen=True)
class ResizePad:
    """Resize (nearest) to a random share of the side in [low, high], put at a random place on zeros, perhaps flip.

    The canvas is as large as the largest size, and never smaller than the image: with high = 1 every architecture accepts it. The
    paper enlarges (310/299 to 331/299), which needs one that takes other sizes. relax averages the probabilities of `n` draws.

    Family: randomisation. Year: 2018.
    Reference: Xie et al. 2018, arXiv:1711.01991.
    """

    low: float = 0.9
    high: float = 1.0
    flip: bool = False
    n: int = 20

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise SpecError(f"ResizePad: 0 < low <= high must hold, got {self.low} and {self.high}. Try 0.9 and 1.")
        if self.n < 1:
            raise SpecError(f"ResizePad: n must be 1 or more, got {self.n}. Try 20.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._move)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Expectation(Transformed(model, self._move), self.n)

    def _move(self, x: Tensor) -> Tensor:
        needs_images(x, "ResizePad")
        if self.low == self.high == 1 and not self.flip:
            return x
        like = x.flatten(1)[:, :1]
        share = seed.uniform(like, 0, 1)[:, 0]  # one share for both axes: the picture keeps its proportions
        rows, in_rows = self._axis(x.shape[2], share, seed.uniform(like, 0, 1)[:, 0])
        columns, in_columns = self._axis(x.shape[3], share, seed.uniform(like, 0, 1)[:, 0])
        if self.flip:
            turn = seed.integers(x, 2).bool()[:, None]
            columns = torch.where(turn, columns.flip(1), columns)
            in_columns = torch.where(turn, in_columns.flip(1), in_columns)
        n, c = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
        picture = x[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        return picture * (in_rows[:, None, :, None] & in_columns[:, None, None, :])

    def _axis(self, side: int, share: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Per example and cell of the canvas: which pixel is shown there (n, canvas), and whether one is."""
        least, most = max(1, round(self.low * side)), max(1, round(self.high * side))
        canvas = max(side, most)
        size = least + (share * (most - least + 1)).floor().long()
        start = (place * (canvas - size + 1)).floor().long()
        at = torch.arange(canvas, device=share.device)[None, :] - start[:, None]
        shown = (at >= 0) & (at < size[:, None])
        return (at * side // size[:, None]).clamp(0, side - 1), shown
