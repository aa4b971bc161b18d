"""Members that are smooth as well as different: without smoothness, gradients that are apart here may meet nearby."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor.defences.losses.committee_terms import cross_entropies, input_gradients, members_of, pairwise_cosines, summed
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.protocols import Batch, LossFn, Split, Store
from firedoor.threat import Linf

__all__ = ["TRS"]


@dataclass(frozen=True)
class TRS:
    """sum_i CE(f_i(x), y) + la mean_{i<j} |cos(g_i, g_j)| + lb mean_i |g_i'|^2, g the input gradients of the cross-entropy.

    Transferability reduced smooth ensembles. g' is taken at the first half of the batch and at points around the second half where
    the gradients are large: `steps` signed steps of eps / 3 from a random point of an Linf ball. Its eps rises from `eps` to
    `eps_end` over `rise` epochs. `inner_mode`: mode of the network in that search; g and g' are those of training mode. Costs 2 +
    steps / 2 passes, all differentiated twice. la = lb = 0 is JointCrossEntropy. Gradients are per example and per unit of pixels
    in [0,1]; the authors' code squares those of a batch mean of 128, so its lb counts about 10^4 times less. Lower lb if clean
    accuracy suffers. Errors: SpecError for a field out of range, and, in training, without `.members`.

    Family: ensemble. Year: 2021.
    Reference: Yang et al. 2021, arXiv:2104.00671.
    """

    la: float = 40.0
    lb: float = 2.5
    eps: float = 0.01
    eps_end: float = 0.03
    rise: int = 20
    steps: int = 6
    inner_mode: Mode = "eval"

    def __post_init__(self) -> None:
        for name, value in (("la", self.la), ("lb", self.lb), ("eps", self.eps), ("eps_end", self.eps_end)):
            if not 0 <= value < math.inf:
                raise SpecError(f"TRS: {name} must be 0 or more and finite, got {value}. Try la 40, lb 2.5, eps 0.01 to 0.03.")
        if self.rise < 1 or self.steps < 1:
            raise SpecError(f"TRS: rise and steps must be 1 or more, got {self.rise} and {self.steps}. Try 20 and 6.")
        if self.inner_mode not in ("train", "eval"):
            raise SpecError(f"TRS: inner_mode must be 'train' or 'eval', got {self.inner_mode!r}. Choose one.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            members = members_of(module, "TRS")
            x = batch.x.detach().requires_grad_()
            losses = cross_entropies(members, x, batch.y)
            total = summed(losses)
            if self.la and len(members) > 1:
                total = total + self.la * pairwise_cosines(input_gradients(losses, x)).abs().mean()
            if self.lb:
                points = self._points(module, batch).requires_grad_()
                total = total + self.lb * _steepness(members, points, batch.y).mean()
            return total

        return loss

    def _points(self, module: nn.Module, batch: Batch) -> Tensor:
        """The batch (n, *shape), its second half moved to where the members are steep."""
        threat = Linf(self.eps + (self.eps_end - self.eps) * min(1.0, batch.epoch / self.rise))
        half = len(batch.x) // 2
        clean, y = batch.x[half:], batch.y[half:]
        with frozen(module, batch, self.inner_mode):
            x_adv = threat.start(batch.x)[half:]
            for _ in range(self.steps):
                x_adv = x_adv.detach().requires_grad_()
                steep = _steepness(members_of(module, "TRS"), x_adv, y)
                (gradient,) = torch.autograd.grad(steep.sum(), x_adv)
                x_adv = threat.step(x_adv.detach(), clean, gradient, threat.eps / 3)
        return torch.cat([batch.x[:half], x_adv]).detach()


def _steepness(members: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Squared length of the members' input gradients at x, which needs a gradient; mean over members, per example."""
    gradients = input_gradients(cross_entropies(members, x, y), x)
    return torch.stack([g.square().sum(1) for g in gradients]).mean(0)
