"""The one loop of the gradient attacks: step along the steepest direction, project, repeat. Papers are its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.door import check_inputs, check_logits, need_number, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import (
    Access,
    Classifier,
    Estimator,
    GradientFn,
    GradientPart,
    Objective,
    Returned,
    Semantics,
    SourceObjective,
    Step,
)
from firedoor.threat import Threat

__all__ = ["Iterated"]

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
    "logit": losses.logit,
}


@dataclass(frozen=True)
class Iterated:
    """x <- project(x + step_size * steepest(g(x))), `steps` times, where g is the gradient as its parts shape it.

    `step_size`: in the norm of the threat, on the [0,1] pixel scale, and for L0 in pixels; None is eps/steps. In L1 and L0 a step fills
    one pixel after the other as far as the box allows. `parts`: inner to outer, the last one sees x first.
    `objective`: the loss of the source that is raised, or lowered when the threat is targeted: by name, or a recipe that looks inside
    the source. `estimator`: how the gradient comes from values of the loss, for sources that give no gradients; None is backprop.
    `keep`: the last iterate, or the one of all steps and restarts with the best loss, per example, for one more forward pass per
    step. There is no early stop, and examples that are already wrong are attacked as any other. A missing, zero or non-finite
    gradient is a zero gradient.
    Errors: SpecError for the fields; DataError, naming the example, for x and y; ModelRefused for logits of a wrong shape.

    Family: gradient. Year: 2018. G: 10. Tier: T0.
    Reference: Madry et al. 2018, sec. 2.1, arXiv:1706.06083.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    parts: tuple[GradientPart, ...] = ()
    objective: Literal["cross_entropy", "margin", "dlr", "logit"] | SourceObjective = "cross_entropy"
    random_start: bool = False
    restarts: int = 1
    keep: Literal["last", "best"] = "last"
    estimator: Estimator | None = None

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "Iterated: steps")
        need_whole(self.restarts, 1, "Iterated: restarts")
        if self.step_size is not None:
            need_number(self.step_size, 0, math.inf, "Iterated: step_size")
        if not isinstance(self.parts, tuple) or not all(callable(p) for p in self.parts):
            raise SpecError(f"Iterated: parts must be a tuple of gradient parts, got {self.parts!r}. Write (Momentum(1.0),).")
        if self.objective not in OBJECTIVES if isinstance(self.objective, str) else not isinstance(self.objective, SourceObjective):
            raise SpecError(
                f"Iterated: objective must be one of {', '.join(OBJECTIVES)}, or a recipe, got {self.objective!r}. Choose one."
            )
        if self.estimator is not None and not isinstance(self.objective, str):
            raise SpecError("Iterated: an estimator sees scores only, and this objective looks inside the source. Leave one out.")
        if self.objective == "dlr" and self.threat.targeted:
            raise SpecError("Iterated: objective 'dlr' must not be targeted: raising it can move away from y_target. Use 'margin'.")
        if self.keep not in ("last", "best"):
            raise SpecError(f"Iterated: keep must be 'last' or 'best', got {self.keep!r}. Choose one.")
        if self.restarts > 1 and self.keep == "last":
            raise SpecError(f"Iterated: {self.restarts} restarts need keep='best', got 'last': all but one would be thrown away.")

    @property
    def needs(self) -> Access:
        """GRADIENTS; SCORES with an estimator."""
        return Access.GRADIENTS if self.estimator is None else Access.SCORES

    @property
    def semantics(self) -> Semantics:
        """Fixed budget, last or best iterate, no early stop."""
        drawing = self.random_start or any(getattr(p, "stochastic", False) for p in (*self.parts, self.estimator, self.objective))
        return Semantics(returned=Returned.LAST if self.keep == "last" else Returned.BEST_LOSS, stochastic=drawing)

    @property
    def gradients(self) -> int:
        """Forward+backward passes of the source per example."""
        if self.estimator is not None:
            return 0
        return self.restarts * (self._calls if isinstance(self.objective, str) else self.objective.gradients(self._calls))

    @property
    def queries(self) -> int:
        """Forward passes per example without a gradient: the estimator's, the objective's, and one per step of keep='best'."""
        judged = self.steps if self.keep == "best" else 0
        asked = judged + (0 if self.estimator is None else self.estimator.queries(self._calls))
        if not isinstance(self.objective, str):
            asked += self.objective.queries(self._calls + judged)
        return self.restarts * asked

    @property
    def _calls(self) -> int:
        calls = self.steps
        for part in reversed(self.parts):
            calls = part.gradients(calls)
        return calls

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="Iterated"):
            return self._climb(model, x, y)

    def _climb(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        threat = self.threat
        step_size = threat.eps / self.steps if self.step_size is None else self.step_size
        largest = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
        x_best: Tensor | None = None
        for _ in range(self.restarts):
            loss = self._loss(model, x, y)
            gradient = _gradient_of(loss) if self.estimator is None else self.estimator(loss)
            for part in self.parts:  # state of a part dies with the restart
                gradient = part(gradient, Step(threat, step_size, self.steps, y))
            x_adv = threat.start(x) if self.random_start else x
            for _ in range(self.steps):
                x_adv = threat.step(x_adv, x, gradient(x_adv), step_size)
                if self.keep == "best":
                    with torch.no_grad():
                        reached = loss(x_adv).to(x.dtype)
                    better = reached > largest  # False for NaN: such an iterate is never the best
                    largest = torch.where(better, reached, largest)
                    x_best = x_adv if x_best is None else torch.where(better.view(-1, *[1] * (x.dim() - 1)), x_adv, x_best)
        return x_adv if x_best is None else x_best

    def _loss(self, model: Classifier, x: Tensor, y: Tensor) -> GradientFn:
        sign, largest = -1.0 if self.threat.targeted else 1.0, int(y.max())
        if not isinstance(self.objective, str):
            inside = self.objective.start(model, x, y)
            return lambda x_adv: sign * inside(x_adv)
        objective = OBJECTIVES[self.objective]

        def loss(x: Tensor) -> Tensor:
            logits = model(x.clone())  # a copy: a model that normalises in place must not reach the iterate
            check_logits(logits, len(x), largest)
            if self.objective == "dlr" and logits.shape[1] < 3:
                raise SpecError(f"objective 'dlr' needs 3 classes or more, got {logits.shape[1]}. Use 'margin'.")
            return sign * objective(logits, y.repeat(len(x) // len(y)))

        return loss


def _gradient_of(loss: GradientFn) -> GradientFn:
    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        total = loss(leaf).sum()  # the sum, so that no example scales another one's gradient
        if not total.requires_grad:
            return torch.zeros_like(x)
        (g,) = torch.autograd.grad(total, leaf, allow_unused=True)
        return torch.zeros_like(x) if g is None else torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)

    return gradient
