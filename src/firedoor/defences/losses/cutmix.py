"""Training on patchworks: a rectangle of each image comes from another, and as much of the label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.mixup import mixing_shares
from firedoor.errors import DataError, SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["CutMix"]


@dataclass(frozen=True)
class CutMix:
    """s CE(f(x~), y) + (1 - s) CE(f(x~), y_p): x~ is x with a rectangle of x_p at the same place, s the share of x that is left.

    The sides of the rectangle are sqrt(1 - b) of the image's, with b from Beta(alpha, alpha), and its centre is uniform, so it may
    be cut off at the edge. All is drawn per example and epoch, the partner p among the images of the batch, the example itself
    included: so what an example is mixed with depends on its batch. The paper draws one rectangle per batch. One pass. alpha 0 is
    plain training. Errors: SpecError for a negative alpha; DataError, at the start, for inputs that are no images.

    Family: regularisation. Year: 2019.
    Reference: Yun et al. 2019, sec. 3, arXiv:1905.04899.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise SpecError(f"CutMix: alpha must be 0 or more and finite, got {self.alpha}. Try 1.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""
        if self.alpha and split.x.dim() != 4:
            raise DataError(f"CutMix needs images (c, h, w), got inputs of shape {tuple(split.x.shape[1:])}. Use Mixup.")

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            if self.alpha == 0:
                return cross_entropy(module(batch.x), batch.y).mean()
            partner = seed.integers(batch.x, len(batch.x))
            cut = _rectangles(batch.x, self.alpha)
            logits = module(torch.where(cut[:, None], batch.x[partner], batch.x))
            share = 1 - cut.flatten(1).to(logits.dtype).mean(1)
            each = share * cross_entropy(logits, batch.y) + (1 - share) * cross_entropy(logits, batch.y[partner])
            return each.mean()

        return loss


def _rectangles(x: Float[Tensor, "n c h w"], alpha: float) -> Bool[Tensor, "n h w"]:
    """True at the pixels whose centres lie inside."""
    side = (1 - mixing_shares(x, alpha)).sqrt()[:, None] / 2
    inside = []
    for length in x.shape[2:]:
        centre = seed.uniform(x.new_zeros(len(x), 1), 0, 1)
        pixels = (torch.arange(length, device=x.device) + 0.5) / length
        inside.append((pixels - centre).abs() < side)
    return inside[0][:, :, None] & inside[1][:, None, :]
