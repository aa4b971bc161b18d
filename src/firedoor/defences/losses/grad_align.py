"""Fast adversarial training that keeps the loss locally linear, so that its one step stays a good one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from firedoor.defences.losses.committee_terms import input_gradients, pairwise_cosines
from firedoor.defences.losses.fast import Fast, Guarded
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["GradAlign"]


@dataclass(frozen=True)
class GradAlign:
    """Fast + lam (1 - cos(g(x), g(x + u))), g the input gradient of an example's cross-entropy, u a random point of the ball.

    Where this cosine falls, one step no longer finds what many do, and Fast collapses. Normalisation sees x and x + u too. Costs two
    more passes than Fast, differentiated twice. The guard of `base` works as before. lam 0 is `base`.
    The derivative of a cosine grows as gradients shrink, and may end a training early: set clip_gradient = 1.
    Errors: SpecError for a negative lam.

    Family: adversarial training. Year: 2020.
    Reference: Andriushchenko and Flammarion 2020, sec. 4, arXiv:2007.02617.
    """

    base: Fast
    lam: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise SpecError(f"GradAlign: lam must be 0 or more and finite, got {self.lam}. Try 0.2.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load; the guard of `base` takes its examples from `split`."""
        if self.lam == 0:
            return self.base.start(store, split)
        fast = replace(self.base, guard=False).start(store, split)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            total = fast(module, batch)
            gradients = []
            for point in (batch.x, self.base.threat.start(batch.x)):
                x = point.detach().requires_grad_()
                gradients += input_gradients([cross_entropy(module(x), batch.y)], x)
            return total + self.lam * (1 - pairwise_cosines(gradients)).mean()

        return Guarded(loss, self.base.threat, split) if self.base.guard else loss
