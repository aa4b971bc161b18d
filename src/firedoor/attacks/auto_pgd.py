"""Auto-PGD: momentum and a step size that each example halves for itself, so that there is nothing to tune.

What other white-box loops share with it lives here too: one gradient with its loss, one forward pass, the rivals of a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.door import check_inputs, check_logits, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Objective, Returned, Semantics
from firedoor.threat import L1, Threat

__all__ = ["APGD", "Judge", "ascent", "climb", "logits_of", "per_row", "rivals"]

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x_adv (n, *shape) to (what is raised (n,), what is reported of the point (n,))."""

OBJECTIVES: dict[str, Objective] = {"cross_entropy": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}
MOMENTUM = 0.75  # share of the new step, alpha of the paper
ENOUGH = 0.75  # share of steps since the last checkpoint that must have raised the loss, rho of the paper
DENSE = 0.2  # L1: share of the pixels that the first steps move
SPARSER = 1.5  # L1: by how much fewer pixels a step moves than the best point has changed; also what a step size is divided by
SHORTEST = 0.1  # L1: the shortest step, of eps


@dataclass(frozen=True)
class APGD:
    """The best point of `restarts` ascents from random points of the ball, each of `steps` steps that begin at 2 eps.

    At checkpoints an example whose loss rose in too few steps, or whose best loss stood still, halves its step size and goes on from
    its best point. The best loss seen is returned per example, whether it fools the source or not. Linf and L2, and L1 in a form of
    its own (Croce & Hein 2021, arXiv:2103.01208): a step of eps moves the k steepest pixels alike, where k follows the number of
    pixels that the best point has changed; while that number stands still steps get shorter, and these fill pixel after pixel up to
    the box. One forward pass per restart beside the gradients.
    Errors: SpecError for the fields, and for `dlr` with fewer than 3 classes; DataError for x and y; ModelRefused for the logits.

    Family: white box. Year: 2020. G: 100. Tier: T0.
    Reference: Croce & Hein 2020, Alg. 1, arXiv:2003.01690.
    """

    threat: Threat
    steps: int = 100
    restarts: int = 1
    objective: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"

    needs: ClassVar[Access] = Access.GRADIENTS

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "APGD: steps")
        need_whole(self.restarts, 1, "APGD: restarts")
        if self.objective not in OBJECTIVES:
            raise SpecError(f"APGD: objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}. Choose one.")
        if self.objective == "dlr" and self.threat.targeted:
            raise SpecError("APGD: objective 'dlr' must not be targeted: raising it can move away from y_target. Use 'margin'.")
        need_climbable(self.threat, "APGD")

    @property
    def semantics(self) -> Semantics:
        """Fixed budget, best loss, no early stop, random start."""
        dlr = self.objective == "dlr"
        return Semantics(returned=Returned.BEST_LOSS, stochastic=True, targeted=not dlr, min_classes=3 if dlr else 2)

    @property
    def gradients(self) -> int:
        """One per step and restart: the first is that of the start, the last point is only looked at."""
        return self.restarts * self.steps

    @property
    def queries(self) -> int:
        """The last point of each restart."""
        return self.restarts

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        sign, objective = -1.0 if self.threat.targeted else 1.0, OBJECTIVES[self.objective]

        def judge(x_adv: Tensor) -> tuple[Tensor, Tensor]:
            logits = logits_of(model, x_adv, y)
            if self.objective == "dlr" and logits.shape[1] < 3:
                raise SpecError(f"APGD: objective 'dlr' needs 3 classes or more, got {logits.shape[1]}. Use 'margin'.")
            loss = sign * objective(logits, y)
            return loss, loss

        with guard.no_side_effects(model), seed.own_streams(x, purpose="APGD"):
            x_best, best = climb(judge, self.threat, x, self.steps)
            for _ in range(self.restarts - 1):
                x_adv, reached = climb(judge, self.threat, x, self.steps)
                x_best = torch.where(per_row(reached > best, x), x_adv, x_best)
                best = torch.maximum(best, reached)
        return x_best


def climb(judge: Judge, threat: Threat, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """One ascent from a random point of the ball: the point of largest loss, and what `judge` reports of it."""
    if isinstance(threat, L1):
        return _climb_sparsely(judge, threat, x, steps)
    x_adv = x_before = x_best = threat.start(x)
    g_best = torch.zeros_like(x)
    step_size = x.new_full((len(x),), 2 * threat.eps)
    loss = best = best_at_mark = worth_best = x.new_full((len(x),), -math.inf)
    rises, halved = torch.zeros_like(loss), torch.ones_like(loss, dtype=torch.bool)
    marks, last_mark = checkpoints(steps), 0
    for k in range(steps):
        loss_before = loss
        loss, worth, g = ascent(judge, x_adv)
        rises = rises + (loss > loss_before) if k > 0 else rises
        better = loss > best  # False for NaN, which `ascent` gives as -inf
        best, worth_best = torch.where(better, loss, best), torch.where(better, worth, worth_best)
        x_best, g_best = torch.where(per_row(better, x), x_adv, x_best), torch.where(per_row(better, x), g, g_best)
        if k in marks:
            stuck = ~halved & (best <= best_at_mark)  # condition 2: neither the step size nor the best loss changed
            halved = (rises < ENOUGH * (k - last_mark)) | stuck
            step_size = torch.where(halved, step_size / 2, step_size)
            x_adv, g = torch.where(per_row(halved, x), x_best, x_adv), torch.where(per_row(halved, x), g_best, g)
            loss = torch.where(halved, best, loss)
            rises, best_at_mark, last_mark = torch.zeros_like(rises), best, k
        x_next = threat.project(x_adv + per_row(step_size, x) * threat.steepest(g), x)
        if k > 0:
            x_next = threat.project(x_adv + MOMENTUM * (x_next - x_adv) + (1 - MOMENTUM) * (x_adv - x_before), x)
        x_before, x_adv = x_adv, x_next
    with torch.no_grad():
        loss, worth = _finite(judge(x_adv), x)
    better = (loss > best) | (best == -math.inf)
    return torch.where(per_row(better, x), x_adv, x_best), torch.where(better, worth, worth_best)


def _climb_sparsely(judge: Judge, threat: L1, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The same for L1, with a checkpoint every 4 % of the steps: where the best point became sparser, go on from it with steps of eps."""
    pixels, every = x[0].numel(), max(int(0.04 * steps), 1)
    x_adv = x_best = threat.start(x)
    g_best = torch.zeros_like(x)
    best = worth_best = x.new_full((len(x),), -math.inf)
    step_size, count = torch.full_like(best, threat.eps), torch.full_like(best, max(int(DENSE * pixels), 1))
    changed_before = torch.full_like(best, pixels)
    for k in range(steps):
        loss, worth, g = ascent(judge, x_adv)
        better = loss > best
        best, worth_best = torch.where(better, loss, best), torch.where(better, worth, worth_best)
        x_best, g_best = torch.where(per_row(better, x), x_adv, x_best), torch.where(per_row(better, x), g, g_best)
        if k > 0 and k % every == 0:
            changed = (x_best != x).flatten(1).sum(1).to(x.dtype)
            sparser = changed < 0.95 * changed_before
            count, changed_before = (changed / SPARSER).floor().clamp_min(1), changed
            shorter = (step_size / SPARSER).clamp_min(SHORTEST * threat.eps)
            step_size = torch.where(sparser, torch.full_like(best, threat.eps), shorter)
            x_adv, g = torch.where(per_row(sparser, x), x_best, x_adv), torch.where(per_row(sparser, x), g_best, g)
        long = threat.project(x_adv + threat.eps * threat.sparse(g, count), x)
        x_adv = torch.where(per_row(step_size < threat.eps, x), threat.step(x_adv, x, g, step_size), long)
    with torch.no_grad():
        loss, worth = _finite(judge(x_adv), x)
    better = (loss > best) | (best == -math.inf)
    return torch.where(per_row(better, x), x_adv, x_best), torch.where(better, worth, worth_best)


def checkpoints(steps: int) -> frozenset[int]:
    """ceil(p_j steps) for p = 0.22, 0.41, 0.57, ...: gaps that shrink by 0.03 down to 0.06."""
    before, p = 0.0, 0.22
    marks = set()
    while p <= 1:
        marks.add(math.ceil(round(p * steps, 6)))  # 0.41 * 100 is 41, not 41.000000000000004
        before, p = p, p + max(p - before - 0.03, 0.06)
    return frozenset(marks)


def ascent(judge: Judge, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (n,), report (n,), gradient of the loss) at x. A missing or non-finite gradient is zero, a NaN loss -inf."""
    leaf = x.detach().requires_grad_()
    loss, worth = judge(leaf)
    values = _finite((loss.detach(), worth.detach()), x)
    total = loss.sum()  # the sum, so that no example scales another one's gradient
    g = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return *values, torch.zeros_like(x) if g is None else torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)


def logits_of(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Logits (n, k) that passed `check_logits`."""
    logits = model(x.clone())  # a copy: a model that normalises in place must not reach the iterate
    check_logits(logits, len(x), int(y.max()))
    return logits


def rivals(logits: Tensor, y: Tensor, classes: int) -> Int64[Tensor, "n c"]:
    """The `classes` other classes with the largest logits, or as many as there are, largest first."""
    others = logits.detach().scatter(1, y[:, None], -math.inf)
    return others.topk(min(classes, logits.shape[1] - 1), dim=1).indices


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """One value per example (n,), shaped to broadcast over `like` (n, *shape)."""
    return value.view(-1, *[1] * (like.dim() - 1))


def need_climbable(threat: Threat, who: str) -> None:
    """Errors: SpecError unless the norm is Linf, L2 or L1."""
    if threat.norm not in ("Linf", "L2", "L1"):
        raise SpecError(f"{who} needs a Linf, L2 or L1 threat, got {threat.norm}. Use PGD there.")


def _finite(values: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    loss, worth = (torch.where(torch.isnan(v), -math.inf, v.detach()).to(like.dtype) for v in values)
    return loss, worth
