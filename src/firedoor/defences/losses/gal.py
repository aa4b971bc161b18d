"""Members whose input gradients point apart, so that one step cannot harm all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from firedoor.defences.losses.committee_terms import cross_entropies, input_gradients, members_of, pairwise_cosines, summed
from firedoor.errors import SpecError
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["GAL"]


@dataclass(frozen=True)
class GAL:
    """M (mean_i CE(f_i(x), y) + lam log sum_{i<j} exp cos(g_i, g_j)), with g_i the input gradient of member i's cross-entropy.

    The gradient alignment loss, M times the paper's, so that members learn at the lr they would have alone. One forward pass and a
    backward pass of a backward pass; the gradients are those of training mode, batch normalisation included. lam 0, or one member,
    is JointCrossEntropy. Leaky activations and noise augmentation, which the paper adds, are not part of the loss.
    Errors: SpecError for a negative lam, and, in training, without `.members`.

    Family: ensemble. Year: 2019.
    Reference: Kariyappa & Qureshi 2019, arXiv:1901.09981.
    """

    lam: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise SpecError(f"GAL: lam must be 0 or more and finite, got {self.lam}. Try 0.5.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            members = members_of(module, "GAL")
            if self.lam == 0 or len(members) == 1:
                return summed(cross_entropies(members, batch.x, batch.y))
            x = batch.x.detach().requires_grad_()
            losses = cross_entropies(members, x, batch.y)
            coherence = pairwise_cosines(input_gradients(losses, x)).logsumexp(0)
            return summed(losses) + len(members) * self.lam * coherence.mean()

        return loss
