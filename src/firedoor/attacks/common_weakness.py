"""Common weakness: an ensemble attack that looks for a flat point close to the optimum of each network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard
from firedoor.attacks.door import check_inputs, members_of, need_number, need_whole
from firedoor.attacks.parts.momentum import per_mean_size
from firedoor.attacks.svre import ascent
from firedoor.protocols import Access, Classifier, Semantics
from firedoor.threat import L2, Threat

__all__ = ["CWA"]


@dataclass(frozen=True)
class CWA:
    """MI-CWA: a step back against the ensemble's gradient, then one step per network in turn; all of it together is the gradient.

    z = x - reverse eps steepest(g); for each network k: m <- decay m + g_k(z) / |g_k(z)|_2, z <- project(z + inner_step m). The step
    follows the momentum of z - x. m lives for the whole run; with the published inner_step of 250 a network's step ends at the border
    of the ball. step_size=None is 2 eps/steps. Lengths are taken per example. A single network is an ensemble of one.

    G counts passes through the whole source; one through one of its K networks is 1/K. A step takes two: the ensemble's gradient, and
    one of each network.
    Errors: SpecError for the fields; DataError, naming the example, for x and y; ModelRefused for logits of a wrong shape.

    Family: ensemble. Year: 2024. G: 20. Tier: T1.
    Reference: Chen et al. 2024, sec. 3.4 and app. B, arXiv:2303.09105.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    inner_step: float = 250.0
    reverse: float = 1 / 15

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    queries: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "CWA: steps")
        need_number(self.decay, 0, math.inf, "CWA: decay")
        need_number(self.inner_step, 0, math.inf, "CWA: inner_step")
        need_number(self.reverse, 0, 1, "CWA: reverse")
        if self.step_size is not None:
            need_number(self.step_size, 0, math.inf, "CWA: step_size")

    @property
    def gradients(self) -> int:
        """Whole passes: two per step."""
        return 2 * self.steps

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        threat, unit = self.threat, L2(1.0).steepest
        step_size = 2 * threat.eps / self.steps if self.step_size is None else self.step_size
        with guard.no_side_effects(model):
            whole, *each = (ascent(m, y, threat.targeted) for m in (model, *members_of(model)))
            inner, outer, x_adv = torch.zeros_like(x), torch.zeros_like(x), x
            for _ in range(self.steps):
                z = x_adv - self.reverse * threat.eps * threat.steepest(whole(x_adv))
                for gradient in each:
                    inner = self.decay * inner + unit(gradient(z))
                    z = threat.project(z + self.inner_step * inner, x)
                moved = _rounded(z - x_adv, threat)
                outer = self.decay * outer + per_mean_size(moved)
                x_adv = threat.step(x_adv, x, outer, step_size)
        return x_adv


def _rounded(move: Tensor, threat: Threat) -> Tensor:
    """Zero where the walk came back to x but for rounding, which would be normalised to a full step."""
    far = threat.size(move) > 1e-4 * threat.eps
    return torch.where(far.view(-1, *[1] * (move.dim() - 1)), move, torch.zeros_like(move))
