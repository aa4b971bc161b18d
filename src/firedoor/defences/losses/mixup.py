"""Training between the examples: each one is mixed with another, and so are the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from firedoor import seed
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["Mixup", "mixing_shares"]


@dataclass(frozen=True)
class Mixup:
    """s CE(f(x~), y) + (1 - s) CE(f(x~), y_p) at x~ = s x + (1 - s) x_p, with s from Beta(alpha, alpha).

    s and the partner p are drawn per example and epoch, p among the images of the batch, the example itself included: so what an
    example is mixed with depends on its batch. The paper draws one s per batch. One pass. alpha 0 is plain training.
    Errors: SpecError for a negative alpha.

    Family: regularisation. Year: 2018.
    Reference: Zhang et al. 2018, sec. 2, arXiv:1710.09412.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise SpecError(f"Mixup: alpha must be 0 or more and finite, got {self.alpha}. Try 1, or 0.2 on many classes.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            if self.alpha == 0:
                return cross_entropy(module(batch.x), batch.y).mean()
            partner = seed.integers(batch.x, len(batch.x))
            share = mixing_shares(batch.x, self.alpha)
            rows = share.view(-1, *[1] * (batch.x.dim() - 1))
            logits = module(rows * batch.x + (1 - rows) * batch.x[partner])
            each = share * cross_entropy(logits, batch.y) + (1 - share) * cross_entropy(logits, batch.y[partner])
            return each.mean()

        return loss


def mixing_shares(x: Float[Tensor, "n *shape"], alpha: float) -> Float[Tensor, " n"]:
    """One number of Beta(alpha, alpha) per example, alpha > 0, keyed: the quantile of a uniform number."""
    from scipy.special import betaincinv  # slow to import

    uniform = seed.uniform(x.new_zeros(len(x), 1), 0, 1)[:, 0]
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().cpu().numpy())).to(x)
