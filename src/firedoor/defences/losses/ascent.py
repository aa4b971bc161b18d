"""What the losses share that look for x' themselves: steps up an objective, where they begin, and which fields make no sense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from firedoor import seed
from firedoor.errors import SpecError
from firedoor.threat import Threat

__all__ = ["ascend", "check_ascent", "nearby"]


def ascend(
    objective: Callable[[Tensor], Tensor],
    x_adv: Float[Tensor, "n *shape"],
    x: Float[Tensor, "n *shape"],
    threat: Threat,
    steps: int,
    step_size: float | None,
) -> Float[Tensor, "n *shape"]:
    """`steps` steps from x_adv up the objective, which gives one value per row, inside the threat around x; detached.

    `step_size` None means eps / 4.
    """
    step_size = threat.eps / 4 if step_size is None else step_size
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        x_adv = threat.step(x_adv.detach(), x, gradient, step_size)
    return x_adv.detach()


def nearby(threat: Threat, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """x + .001 N(0, 1) inside the threat: a divergence from the answer at x has no gradient at x itself."""
    return threat.project(x + seed.normal(x, 0.001), x)


def check_ascent(who: str, threat: Threat, steps: int, step_size: float | None, inner_mode: str) -> None:
    """Errors: SpecError for fewer than one step, a step_size that is not positive, a targeted threat or an unknown mode."""
    if steps < 1:
        raise SpecError(f"{who}: steps must be 1 or more, got {steps}. Try 10.")
    if step_size is not None and not step_size > 0:
        raise SpecError(f"{who}: step_size must be positive, got {step_size}. Leave it out for eps / 4.")
    if threat.targeted:
        raise SpecError(f"{who}: the threat must be untargeted, got targeted=True. Remove it.")
    if inner_mode not in ("train", "eval"):
        raise SpecError(f"{who}: inner_mode must be 'train' or 'eval', got {inner_mode!r}. Choose one.")
