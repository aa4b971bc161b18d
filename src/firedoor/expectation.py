"""What an attacker does about a random model: average its probabilities over many draws (EOT, Athalye et al. 2018)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from firedoor.protocols import Classifier

__all__ = ["Expectation"]


class Expectation(nn.Module):
    """log of the mean softmax of `model` over n draws per example; the draws are keyed by the surrounding stream."""

    def __init__(self, model: Classifier, n: int) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) to log-probabilities (n, k)."""
        logits = self.model(x.repeat(self.n, *[1] * (x.dim() - 1)))
        return logits.log_softmax(1).view(self.n, len(x), -1).logsumexp(0) - math.log(self.n)
