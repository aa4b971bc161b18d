"""SVRE: an ensemble attack whose steps follow one network at a time, corrected so that their variance is that of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.door import check_inputs, check_logits, members_of, need_number, need_whole
from firedoor.attacks.parts.momentum import per_mean_size
from firedoor.protocols import Access, Classifier, GradientFn, Semantics
from firedoor.threat import Threat

__all__ = ["SVRE", "ascent"]


@dataclass(frozen=True)
class SVRE:
    """Steps along the momentum of an inner walk, whose gradients are g(x) + g_k(z) - g_k(x): the ensemble's, corrected by network k.

    The walk begins anew at x at each step and takes `rounds` K inner steps of the same size, K being the number of networks of the
    source (16 for 4 networks, as in the paper). k is drawn per example and inner step. rounds=0 is MI_FGSM on the ensemble.
    step_size=None is eps/steps. A single network is an ensemble of one.

    G counts passes through the whole source; one through one of its K networks is 1/K. A step takes the gradient of the ensemble,
    that of each network at x, which the inner steps share, and one network's per inner step: 2 + rounds, whatever K is.
    Errors: SpecError for the fields; DataError, naming the example, for x and y; ModelRefused for logits of a wrong shape.

    Family: ensemble. Year: 2022. G: 60. Tier: T1.
    Reference: Xiong et al. 2022, Alg. 1, arXiv:2111.10752.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    rounds: int = 4

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics(stochastic=True)
    queries: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "SVRE: steps")
        need_whole(self.rounds, 0, "SVRE: rounds")
        need_number(self.decay, 0, math.inf, "SVRE: decay")
        if self.step_size is not None:
            need_number(self.step_size, 0, math.inf, "SVRE: step_size")

    @property
    def gradients(self) -> int:
        """Whole passes: 1 without inner steps, else 2 + rounds, per step."""
        return self.steps * (2 + self.rounds if self.rounds else 1)

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="SVRE"):
            step_size = self.threat.eps / self.steps if self.step_size is None else self.step_size
            whole = ascent(model, y, self.threat.targeted)
            memory, x_adv = torch.zeros_like(x), x
            for t in range(self.steps):
                g = whole(x_adv)
                if self.rounds:
                    g = self._walked(model, x_adv, x, y, g, step_size, t)
                memory = self.decay * memory + per_mean_size(g)
                x_adv = self.threat.step(x_adv, x, memory, step_size)
            return x_adv

    def _walked(self, model: Classifier, x_adv: Tensor, x: Tensor, y: Tensor, g: Tensor, step_size: float, t: int) -> Tensor:
        """The momentum at the end of the inner walk."""
        members = members_of(model)
        here = [ascent(m, y, self.threat.targeted)(x_adv) for m in members]
        memory, z = torch.zeros_like(x), x_adv
        length = self.rounds * len(members)
        for i in range(length):
            drawn, corrected = seed.integers(x, len(members)), g.clone()
            for k, member in enumerate(members):
                rows = (drawn == k).nonzero()[:, 0]
                if len(rows):
                    with seed.subset(rows, torch.full_like(rows, t * length + i)):
                        corrected[rows] += ascent(member, y[rows], self.threat.targeted)(z[rows]) - here[k][rows]
            memory = self.decay * memory + per_mean_size(corrected)
            z = self.threat.step(z, x, memory, step_size)
        return memory


def ascent(model: Classifier, y: Tensor, targeted: bool) -> GradientFn:
    """x to the gradient of the cross-entropy, or of its opposite where targeted; zero where there is none or it is not finite."""

    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        logits = model(leaf.clone())  # a copy: a model that normalises in place must not reach the iterate
        check_logits(logits, len(x), int(y.max()))
        total = losses.cross_entropy(logits, y).sum()
        if not total.requires_grad:
            return torch.zeros_like(x)
        (g,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if g is None:
            return torch.zeros_like(x)
        g = torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)
        return -g if targeted else g

    return gradient
