"""Many draws of a random model as one answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["Vote"]


@dataclass(frozen=True)
class Vote:
    """The majority of `n` draws of a random model; draws that agree give their label n votes, and ties go to the likelier label.

    The logits are log((votes + p) / (n + 1)), with p the mean probability over the same draws: p is under 1, so it orders labels
    with as many votes and no others, and a label without votes keeps a finite logit. The answer is still random. relax averages
    the probabilities of n draws, or of as many as the relaxed model already averages, if those are more.

    Family: randomisation. Year: 2019.
    Reference: Cohen et al. 2019, arXiv:1902.02918 (its prediction, without abstaining).
    """

    n: int = 20

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise SpecError(f"Vote: n must be a whole number of 1 or more, got {self.n!r}. Try 20.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _Majority(model, self.n)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        if isinstance(model, Expectation):  # a mean of means is one mean
            return Expectation(model.model, max(self.n, model.n))
        return Expectation(model, self.n)


class _Majority(nn.Module):
    def __init__(self, model: Classifier, n: int) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.repeat(self.n, *[1] * (x.dim() - 1))).view(self.n, len(x), -1)
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0).to(logits.dtype)
        log_p = logits.log_softmax(2).logsumexp(0) - math.log(self.n)
        return votes.log().logaddexp(log_p) - math.log(self.n + 1)
