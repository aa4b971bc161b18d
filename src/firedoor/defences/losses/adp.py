"""Members that agree on the label and disagree on the rest: diversity of the predictions that are not the label's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from firedoor.defences.losses.committee_terms import members_of, summed
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["ADP", "mean_entropy", "non_label_diversity"]

RIDGE = 1e-6  # members that predict alike, or outnumber the other classes, have determinant 0


@dataclass(frozen=True)
class ADP:
    """sum_i CE(f_i(x), y) - alpha H(mean_i p_i) - beta log det(P^T P + 1e-6 I), P the unit vectors of the non-label probabilities.

    Adaptive diversity promoting. One pass. alpha = beta = 0 is JointCrossEntropy. The determinant has room for as many members as
    there are classes other than the label. Broken in the white box by Tramer et al. 2020, arXiv:2002.08347.
    Errors: SpecError for a negative weight, and, in training, without `.members`.

    Family: ensemble. Year: 2019.
    Reference: Pang et al. 2019, sec. 3, arXiv:1901.08846.
    """

    alpha: float = 2.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise SpecError(f"ADP: {name} must be 0 or more and finite, got {value}. Try alpha 2 and beta 0.5.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            logits = [m(batch.x) for m in members_of(module, "ADP")]
            total = summed([cross_entropy(z, batch.y) for z in logits])
            if self.alpha:
                total = total - self.alpha * mean_entropy(torch.stack(logits)).mean()
            if self.beta:
                total = total - self.beta * non_label_diversity(torch.stack(logits), batch.y).mean()
            return total

        return loss


def mean_entropy(logits: Float[Tensor, "m n k"]) -> Float[Tensor, " n"]:
    """Entropy, in nats, of the members' mean probability, per example."""
    log_p = logits.float().log_softmax(2).logsumexp(0) - math.log(len(logits))
    return -(log_p.exp() * log_p).sum(1)


def non_label_diversity(logits: Float[Tensor, "m n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log det of the Gram matrix of the members' unit non-label predictions, per example; 0 if orthogonal, and below otherwise.

    The softmax over the other classes has the direction of their probabilities, and keeps it where the label takes all.
    """
    label = torch.zeros_like(logits[0], dtype=torch.bool).scatter_(1, y[:, None], True)
    others = logits.double().masked_fill(label, -torch.inf).softmax(2).transpose(0, 1)
    units = others / torch.linalg.vector_norm(others, dim=2, keepdim=True)
    ridge = RIDGE * torch.eye(len(logits), dtype=units.dtype, device=units.device)
    log_det: Tensor = torch.linalg.slogdet(units @ units.transpose(1, 2) + ridge).logabsdet
    return log_det.float()
