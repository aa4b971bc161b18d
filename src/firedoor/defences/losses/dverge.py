"""Members that learn each other's non-robust features, and so share none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.committee_terms import cross_entropies, layers_of, members_of, summed
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store
from firedoor.threat import Linf

__all__ = ["DVERGE"]


@dataclass(frozen=True)
class DVERGE:
    """sum_i sum_{j != i} CE(f_i(x_j'), y): x_j' is x, moved until a layer of f_j sees another image of the batch there.

    x_j' is found by `steps` signed steps in an Linf ball around x, with momentum. The layer, before its activation, is drawn per
    epoch among the convolutions and linear layers but the last, each member from its own; it depends on the epoch alone. The paper
    begins with a trained plain ensemble; here the first `warm_up` epochs are JointCrossEntropy, which is our choice, so the fit must
    be longer than that. One member has nobody to learn from, and gets JointCrossEntropy too. `inner_mode`: mode of the members while
    x' is found. Costs steps + M - 1 passes, and a forward pass, of each member. Results vary a lot from seed to seed.
    Errors: SpecError for a field out of range, and, in training, without `.members` or layers.

    Family: ensemble. Year: 2020.
    Reference: Yang et al. 2020, Alg. 1, arXiv:2009.14720.
    """

    eps: float = 0.07
    step_size: float = 0.007
    steps: int = 10
    warm_up: int = 10
    inner_mode: Mode = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf or not 0 < self.step_size < math.inf:
            raise SpecError(
                f"DVERGE: eps must be 0 or more and step_size positive, got {self.eps} and {self.step_size}. Try 0.07 and 0.007."
            )
        if self.steps < 1 or self.warm_up < 0:
            raise SpecError(
                f"DVERGE: steps must be 1 or more and warm_up 0 or more, got {self.steps} and {self.warm_up}. Try 10 and 10."
            )
        if self.inner_mode not in ("train", "eval"):
            raise SpecError(f"DVERGE: inner_mode must be 'train' or 'eval', got {self.inner_mode!r}. Choose one.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            members = members_of(module, "DVERGE")
            if batch.epoch < self.warm_up or len(members) == 1:
                return summed(cross_entropies(members, batch.x, batch.y))
            partner = batch.x[seed.integers(batch.x, len(batch.x))]
            with frozen(module, batch, self.inner_mode):
                moved = [self._move(m, batch, partner) for m in members]
            losses = []
            for i, member in enumerate(members):
                others = torch.cat([x for j, x in enumerate(moved) if j != i])
                each = cross_entropy(member(others), batch.y.repeat(len(members) - 1))
                losses.append((len(members) - 1) * each)
            return summed(losses)

        return loss

    def _move(self, member: nn.Module, batch: Batch, partner: Tensor) -> Tensor:
        """x' (n, *shape): what the member's layer takes for the partner, near x."""
        layers = layers_of(member)
        if not layers:
            raise SpecError(f"DVERGE needs members with convolutions or linear layers, got {type(member).__name__} without.")
        inside = layers[:-1] or layers
        layer = inside[int(seed.order(len(inside), batch.epoch, "DVERGE layer")[0])]
        threat, x_adv, memory = Linf(self.eps), batch.x, torch.zeros_like(batch.x)
        with torch.no_grad():
            wanted = _seen(layer, member, partner)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            distance = (_seen(layer, member, x_adv) - wanted).float().square().sum()  # in half precision squares do not fit
            (g,) = torch.autograd.grad(distance, x_adv)
            size = g.flatten(1).abs().sum(1).clamp_min(1e-12)
            memory = memory + g / size.view(-1, *[1] * (g.dim() - 1))
            x_adv = threat.step(x_adv.detach(), batch.x, -memory, self.step_size)
        return x_adv.detach()


def _seen(layer: nn.Module, member: nn.Module, x: Tensor) -> Tensor:
    """What the layer puts out when the member is shown x."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        member(x)
    finally:
        hook.remove()
    return seen[-1]
