"""Activations kept at random, the large ones likelier: a gradient that changes at each query, and no more than that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.broken.activations import replace_activations
from firedoor.errors import ModelRefused, SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Architecture

__all__ = ["RandomPruning"]


@dataclass(frozen=True)
class RandomPruning:
    """Stochastic activation pruning, put into a trained network: each activation layer draws which of its values stay.

    Of m values h it draws r = `share` m times with replacement, with probability p = |h| / sum |h|. A value that was drawn at least
    once is divided by the chance of that, 1 - (1 - p)^r, so the layer's mean is h; the others become 0. Training is plain. relax
    averages the probabilities of `n` draws.

    Family: gradient masking. Year: 2018.
    Reference: Dhillon et al. 2018, arXiv:1803.01442.
    """

    share: float = 1.0
    n: int = 20

    stochastic: ClassVar[bool] = True
    broken_by: ClassVar[str] = "gradients averaged over draws: Athalye et al. 2018, arXiv:1802.00420"

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise SpecError(f"RandomPruning: share must be positive and finite, got {self.share}. Try 1: as many draws as values.")
        if self.n < 1:
            raise SpecError(f"RandomPruning: n must be 1 or more, got {self.n}. Try 20.")

    def build(self, architecture: Architecture, shape: tuple[int, ...], classes: int) -> nn.Module:
        return replace_activations(architecture.build(shape, classes), "RandomPruning", lambda layer: _Pruned(layer, self.share))

    def relax(self, module: nn.Module) -> nn.Module:
        """The log of the mean softmax over n draws."""
        if not any(isinstance(m, _Pruned) for m in module.modules()):
            raise ModelRefused(f"RandomPruning relaxes what it built, got a {type(module).__name__}. Build it with RandomPruning.")
        return Expectation(module, self.n)


class _Pruned(nn.Module):
    def __init__(self, activation: nn.Module, share: float) -> None:
        super().__init__()
        self.activation = activation
        self.share = share

    def forward(self, a: Tensor) -> Tensor:
        h: Tensor = self.activation(a)
        return h if self.training else h * self._factors(h.detach())

    def _factors(self, h: Tensor) -> Tensor:
        """0 for what was not drawn, 1 / (1 - (1 - p)^r) for what was; constants for the gradient. Shaped as h."""
        size = h.flatten(1).abs().double()
        m = size.shape[1]
        r = math.ceil(self.share * m)
        ends = size.cumsum(1)
        at = seed.uniform(h.flatten(1)[:, :1].expand(-1, r), 0, 1).double() * ends[:, -1:]
        drawn = torch.searchsorted(ends, at, right=True).clamp_max(m - 1)  # past the end where all h are 0
        kept = torch.zeros_like(size).scatter(1, drawn, 1.0) * (size > 0)
        p = size / ends[:, -1:].clamp_min(torch.finfo(torch.double).tiny)
        chance = -torch.expm1(r * torch.log1p(-p))
        return torch.where(kept > 0, 1 / chance, 0.0).to(h.dtype).view_as(h)
