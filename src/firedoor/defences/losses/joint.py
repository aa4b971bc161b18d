"""The control of every jointly trained ensemble: the same members in the same run, that know nothing of each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from firedoor.defences.losses.committee_terms import cross_entropies, members_of, summed
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["JointCrossEntropy"]


@dataclass(frozen=True)
class JointCrossEntropy:
    """The sum of the members' cross-entropies: each member of a Committee learns what it would have learned alone.

    CrossEntropy on a Committee is another thing: it trains the combined answer. Errors: SpecError, in training, without `.members`.

    Family: ensemble. Year: 2017.
    Reference: Lakshminarayanan et al. 2017, Alg. 1, arXiv:1612.01474.
    """

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            return summed(cross_entropies(members_of(module, "JointCrossEntropy"), batch.x, batch.y))

        return loss
