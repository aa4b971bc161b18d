"""The majority under Gaussian noise, which says nothing where the vote is too close to call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.wrappers.transformed import Transformed
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Classifier, Store

__all__ = ["Smoothing"]

GAP = 100.0  # by which the logit of an answer not given lies below the least of the others


@dataclass(frozen=True)
class Smoothing:
    """The majority of `n` draws of model(x + N(0, sigma^2)); abstains unless the top two counts differ at level `alpha`.

    (n, k) logits become (n, k+1): log((votes + p) / (n + 1)) for the classes, with p the mean probability of the first `m` draws, and
    a last one that is largest where the two-sided binomial test of the top two counts does not reject, and smallest elsewhere. The
    network is to be trained with the same noise (NoiseAugmented); `Certificates` bounds the radius in which the answer stands. relax
    is the log of the mean softmax over m draws. Without noise, sigma 0, there is nothing to test: the labels are those of the model.
    A draw without a finite answer makes the whole answer NaN.

    Family: randomisation. Year: 2019.
    Reference: Cohen et al. 2019, sec. 3.2, arXiv:1902.02918.
    """

    sigma: float = 0.25
    n: int = 100
    alpha: float = 0.001
    m: int = 20

    stochastic: ClassVar[bool] = True
    abstains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise SpecError(f"Smoothing: sigma must be 0 or more, got {self.sigma}. Try 0.25.")
        if not 0 < self.alpha < 1:
            raise SpecError(f"Smoothing: alpha must lie between 0 and 1, got {self.alpha}. Try 0.001.")
        fewest = math.ceil(math.log2(2 / self.alpha)) if self.sigma else 1  # as many votes without dissent have p = 2 / 2^n
        if self.n < fewest:
            raise SpecError(
                f"Smoothing: n must be {fewest} or more for alpha {self.alpha:g}, got {self.n}: it would always abstain."
            )
        if self.m < 1:
            raise SpecError(f"Smoothing: m must be 1 or more, got {self.m}. Try 20.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _Poll(model, self)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _Mean(Expectation(Transformed(model, self.noisy), self.m if self.sigma else 1))

    def noisy(self, x: Tensor) -> Tensor:
        """x with fresh noise; rows beyond the examples of the stream are further draws of them."""
        return x + seed.normal(x, self.sigma) if self.sigma else x


class _Poll(nn.Module):
    def __init__(self, model: Classifier, recipe: Smoothing) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        n, m = (self.recipe.n, self.recipe.m) if self.recipe.sigma else (1, 1)
        logits = self._ask(x, min(m, n))
        votes, finite = _count(logits)
        p = logits.softmax(2).mean(0)
        with torch.no_grad():  # a graph of all n draws would not fit
            for done in range(m, n, m):  # the groups are of one size, so a draw does not depend on the batch
                more, fine = _count(self._ask(x, min(m, n - done)))
                votes, finite = votes + more, finite & fine
        scores = ((votes + p) / (n + 1)).log().masked_fill(~finite[:, None], torch.nan)
        return torch.cat([scores, torch.where(self._open(votes), 1.0, _below(scores))[:, None]], dim=1)

    def _ask(self, x: Tensor, draws: int) -> Tensor:
        """(draws, n, k) logits."""
        return self.model(self.recipe.noisy(x.repeat(draws, *[1] * (x.dim() - 1)))).view(draws, len(x), -1)

    def _open(self, votes: Tensor) -> Tensor:
        """(n,) whether each vote is too close to call: the exact two-sided test of its top two counts does not reject."""
        from scipy.special import betainc

        if not self.recipe.sigma:
            return torch.zeros(len(votes), dtype=torch.bool, device=votes.device)
        first, second = votes.topk(2).values.double().cpu().unbind(1)
        p_value = 2 * betainc(first.numpy(), second.numpy() + 1, 0.5)  # P[Bin(first + second, 1/2) >= first], on both sides
        return torch.from_numpy(p_value > self.recipe.alpha).to(votes.device)


class _Mean(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.training = False
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        log_p = self.model(x)
        return torch.cat([log_p, _below(log_p)[:, None]], dim=1)


def _count(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Votes (n, k) of (draws, n, k) logits, and (n,) whether every draw is finite."""
    votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0).to(logits.dtype)
    return votes, torch.isfinite(logits).all(2).all(0)


def _below(logits: Tensor) -> Tensor:
    return logits.detach().amin(1) - GAP
