"""Flat minima of the adversarial loss: it is lowered at the worst weights nearby, on examples crafted at the weights themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from firedoor.errors import SpecError
from firedoor.protocols import Batch, BatchLoss, Classifier, LossFn, Split, Store

__all__ = ["AWP", "Crafting"]


@runtime_checkable
class Crafting(Protocol):
    """A batch loss in two parts: find x' on the network, then the loss at that x'. Madry, TRADES and MART are."""

    def start(self, store: Store, split: Split) -> LossFn: ...
    def craft(self, module: nn.Module, batch: Batch) -> Tensor: ...
    def outer(self, classifier: Classifier, batch: Batch, x_adv: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class AWP:
    """The loss `base` at w + v, v_l = gamma |w_l| g_l / |g_l| with g its gradient over the batch at w; its gradient is applied to w.

    Per weight of two dimensions or more; biases and normalisation stay. x' is crafted once, at w, so this costs one more forward
    and backward pass per network input of `base`: G + 2 around Madry, steps + 4 around TRADES. Normalisation statistics are those at
    w. gamma 0 is `base`. The paper takes 0.01, and 0.005 around TRADES.
    Errors: SpecError for a negative gamma, or a base that does not craft in a part of its own.

    Family: adversarial training. Year: 2020.
    Reference: Wu et al. 2020, sec. 3, arXiv:2004.05884.
    """

    base: BatchLoss
    gamma: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise SpecError(f"AWP: gamma must be 0 or more and finite, got {self.gamma}. Try 0.01.")
        if not isinstance(self.base, Crafting):
            raise SpecError(
                f"AWP: base must craft its examples apart from its loss, got {type(self.base).__name__}. Use Madry, TRADES or MART."
            )

    def start(self, store: Store, split: Split) -> LossFn:
        """What `base` loads."""
        base = self.base
        assert isinstance(base, Crafting)
        if self.gamma == 0:
            return base.start(store, split)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            x_adv = base.craft(module, batch)
            moved = self._moved(module, base.outer(module, batch, x_adv))
            buffers = {k: b.clone() for k, b in module.named_buffers()}  # so that w + v counts in no statistic
            return base.outer(lambda x: functional_call(module, {**moved, **buffers}, (x,)), batch, x_adv)

        return loss

    def _moved(self, module: nn.Module, here: Tensor) -> dict[str, Tensor]:
        """w + v by name, whose gradient is that of w; weights that do not move are left out."""
        weights = {k: p for k, p in module.named_parameters() if p.requires_grad and p.dim() > 1}
        g = torch.autograd.grad(here, list(weights.values()), materialize_grads=True)
        moved = {}
        for (name, p), part in zip(weights.items(), g, strict=True):
            length, size = part.double().square().sum().sqrt(), p.detach().double().square().sum().sqrt()
            moved[name] = p + (self.gamma * size / length.clamp_min(1e-30) * part).to(p.dtype)
        return moved
