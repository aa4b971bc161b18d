"""Fast minimum-norm attack: a ball that shrinks while its point is adversarial and grows while it is not.

What all minimum-norm attacks share lives here too: the side of the boundary, the closest adversarial so far, what is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.auto_pgd import Judge, ascent, logits_of, per_row
from firedoor.attacks.door import check_inputs, need_number, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import Access, Budget, Classifier, Returned, Semantics
from firedoor.threat import L2, Threat

__all__ = ["FMN", "MINIMAL", "Found", "annealed", "boxed", "closer", "excess", "judge_of", "margin_at", "nothing_found", "outcome"]

LAST_GAMMA = 0.001
MINIMAL = Semantics(budget=Budget.MINIMUM, returned=Returned.CLOSEST)


@dataclass(frozen=True)
class FMN:
    """Normalised gradient steps on the margin inside a ball whose radius follows the boundary, per example.

    `step_size` (Euclidean, on the pixel scale) falls to a hundredth of itself, `gamma` (the relative change of the radius) to 0.001,
    both along a cosine. Returns the closest adversarial if it is within eps, else its projection, or that of the last point where
    there is none; an example that is wrong from the start is pushed further from y inside the ball of eps. Linf, L2, L1, L0.
    Errors: SpecError for the fields; DataError for x and y; ModelRefused for the logits.

    Family: white box. Year: 2021. G: 100. Tier: T2.
    Reference: Pintor et al. 2021, Alg. 1, arXiv:2102.12827.
    """

    threat: Threat
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = MINIMAL
    queries: ClassVar[int] = 1  # the last point

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "FMN: steps")
        need_number(self.step_size, 0, math.inf, "FMN: step_size")
        need_number(self.gamma, LAST_GAMMA, 1, "FMN: gamma")
        if self.threat.norm not in (*WITHIN, "L0"):
            raise SpecError(f"FMN knows balls of {', '.join(WITHIN)}, L0, got {self.threat.norm}. Choose one of them.")

    @property
    def gradients(self) -> int:
        """One per step."""
        return self.steps

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="FMN"):
            return self._search(model, x, y)

    def _search(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        threat, found, x_adv = self.threat, nothing_found(x), x
        judge = judge_of(model, y, threat, losses.margin)
        radius = torch.ones_like(found.size) if threat.norm == "L0" else torch.zeros_like(found.size)
        wrong = torch.zeros_like(found.size, dtype=torch.bool)
        for k in range(self.steps):
            _, margin, g = ascent(judge, x_adv)
            wrong = margin > 0 if k == 0 else wrong
            found = closer(found, x_adv, (margin > 0) & ~wrong, x, threat)
            gamma = annealed(self.gamma, LAST_GAMMA, k, self.steps)
            radius = _next_radius(radius, margin, g, threat.size(x_adv - x), found, gamma, threat)
            radius = torch.where(wrong, threat.eps, radius)
            step = annealed(self.step_size, self.step_size / 100, k, self.steps) * L2(1.0).steepest(g)
            if threat.norm == "L0":
                x_adv = x + _on_few_pixels(boxed(x_adv + step) - x, radius, g, x)
            else:
                x_adv = boxed(x + WITHIN[threat.norm](x_adv + step - x, radius))
        found = closer(found, x_adv, (margin_at(model, x_adv, y, threat) > 0) & ~wrong, x, threat)
        return outcome(found, x_adv, x, threat)


class Found(NamedTuple):
    """The closest adversarial so far, and its size; infinite where there is none."""

    x_adv: Tensor
    size: Tensor


def nothing_found(x: Tensor) -> Found:
    """How a search begins."""
    return Found(x, x.new_full((len(x),), math.inf))


def closer(found: Found, x_adv: Tensor, adversarial: Tensor, x: Tensor, threat: Threat) -> Found:
    """`found`, with x_adv in the rows where it is adversarial and closer."""
    size = threat.size(x_adv - x)
    better = adversarial & (size < found.size)
    return Found(torch.where(per_row(better, x), x_adv, found.x_adv), torch.where(better, size, found.size))


def outcome(found: Found, last: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """The closest adversarial if it is within eps, else its projection; that of the last point where none was found."""
    point = torch.where(per_row(found.size < math.inf, x), found.x_adv, last)
    near = (found.size <= threat.eps) & (threat.eps > 0)
    return torch.where(per_row(near, x), point, threat.project(point, x))


def judge_of(model: Classifier, y: Tensor, threat: Threat, loss: Callable[[Tensor, Tensor], Tensor]) -> Judge:
    """What an attack with this threat raises, and `excess`."""
    sign = -1.0 if threat.targeted else 1.0

    def judge(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(model, x_adv, y)
        return sign * loss(logits, y), excess(logits, y, threat)

    return judge


def excess(logits: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """How far beyond the boundary (n,): positive iff adversarial, which is y_target first for a targeted threat, y not first else."""
    margin = -losses.margin(logits, y) if threat.targeted else losses.margin(logits, y)
    return torch.nan_to_num(margin.detach(), nan=0.0)


def margin_at(model: Classifier, x_adv: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """`excess` at x_adv, for one forward pass."""
    with torch.no_grad():
        return excess(logits_of(model, x_adv, y), y, threat).to(x_adv.dtype)


def annealed(first: float, last: float, k: int, steps: int) -> float:
    """The k-th of `steps` values that fall from `first` towards `last` along a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


def boxed(x: Tensor) -> Tensor:
    """x with every pixel in [0,1]."""
    return x.clamp_min(0).clamp_max(1)


def _next_radius(radius: Tensor, margin: Tensor, g: Tensor, size: Tensor, found: Found, gamma: float, threat: Threat) -> Tensor:
    before, beyond = found.size == math.inf, margin > 0
    if (
        threat.norm == "L0"
    ):  # whole pixels: at least one more, or one less; never more than eps, as a choice among more of them differs
        less, more = (radius - 1).minimum((radius * (1 - gamma)).floor()), (radius + 1).maximum((radius * (1 + gamma)).floor())
        return torch.where(beyond, less.minimum(found.size), more.clamp_max(threat.eps)).clamp_min(1)
    slope = (g * threat.steepest(g)).flatten(1).sum(1)  # the dual norm of g
    ahead = torch.where(slope > 0, margin.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny), 0.0)
    usual = radius * (1 + gamma)
    outwards = torch.where(before, torch.maximum(size + ahead, usual), usual)  # the estimate alone can end short of the boundary
    return torch.where(beyond, (radius * (1 - gamma)).minimum(found.size), outwards)


def _within_linf(delta: Tensor, radius: Tensor) -> Tensor:
    most = per_row(radius, delta)
    return torch.minimum(torch.maximum(delta, -most), most)


def _within_l2(delta: Tensor, radius: Tensor) -> Tensor:
    shrink = radius / L2(1.0).size(delta).clamp_min(1e-30)
    return delta * per_row(shrink.clamp_max(1), delta)


def _within_l1(delta: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection: all sizes less one threshold, found among the sorted ones."""
    flat = delta.flatten(1).abs()
    ranked = flat.sort(dim=1, descending=True).values
    over = ranked.cumsum(1) - radius[:, None]
    rank = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
    kept = (ranked * rank > over).sum(1, keepdim=True).clamp_min(1)
    threshold = (over.gather(1, kept - 1) / kept).clamp_min(0)
    return delta.sign() * (flat - threshold).clamp_min(0).view_as(delta)


def _on_few_pixels(delta: Tensor, radius: Tensor, g: Tensor, x: Tensor) -> Tensor:
    """delta on the `radius` pixels that gain most at the edge of the box; a pixel of an image is all its channels at one place.

    The paper keeps the pixels that changed most. Those may have no room left, and cost a pixel more on a linear model.
    """
    gain = g * ((g > 0).to(x.dtype) - x)
    worth = (gain.sum(1) if gain.dim() == 4 else gain).flatten(1)
    place = worth.argsort(dim=1, descending=True).argsort(dim=1)
    kept = place < radius[:, None]
    return delta * (kept.view(len(delta), 1, *delta.shape[2:]) if delta.dim() == 4 else kept.view_as(delta))


WITHIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Linf": _within_linf,
    "L2": _within_l2,
    "L1": _within_l1,
}
