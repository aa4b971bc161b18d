"""Fool a model that may reject its input, and stay under the score from which it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from firedoor import losses
from firedoor.attacks.door import check_logits, need_number
from firedoor.errors import ModelRefused
from firedoor.protocols import Classifier, GradientFn
from firedoor.threat import Threat

__all__ = ["Detecting", "Undetected"]


@runtime_checkable
class Detecting(Protocol):
    """A live classifier whose last logit means "rejected", and that says how suspicious an input is."""

    threshold: float  # rejected above

    def __call__(self, x: Tensor) -> Tensor: ...  # (n, k+1)
    def score(self, x: Tensor) -> Tensor: ...  # (n,)


@dataclass(frozen=True)
class Undetected:
    """Raises cross_entropy(first k logits, y) - lam max(0, score - threshold + slack), of a source that has `score` and `threshold`.

    `slack` keeps x_adv away from the threshold. `once_fooled`: the second term counts only where the first k logits are wrong already
    (targeted: are y_target). Without that it keeps x_adv from the boundary itself, where a squeezed answer differs most, and under a
    low threshold the attack never leaves x. Some iterates are detected and some are not: use it with keep='best'. Targeted, both
    terms go the other way: `threat` is that of the attack, of which only `targeted` is read; study files fill it in.
    Errors: SpecError for the fields; ModelRefused for a source without score and threshold, or logits of a wrong shape.

    Family: adaptive. Year: 2017.
    Reference: He et al. 2017, arXiv:1706.04701.
    """

    lam: float = 30.0
    slack: float = 0.05
    once_fooled: bool = True
    threat: Threat | None = None

    stochastic: ClassVar[bool] = False
    detectors_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_number(self.lam, 0, math.inf, "Undetected: lam")
        need_number(self.slack, 0, 2, "Undetected: slack")

    def start(self, model: Classifier, x: Tensor, y: Tensor) -> GradientFn:
        """The loss of these labels."""
        if not isinstance(model, Detecting):
            raise ModelRefused(
                f"Undetected needs a source with `score` and `threshold`, but got {type(model).__name__}, which rejects nothing. "
                "Attack a detector through its relax, such as Squeezing, or use the objective 'cross_entropy'."
            )
        detector, largest = model, int(y.max())
        sign = -1.0 if self.threat is not None and self.threat.targeted else 1.0

        def loss(x_adv: Tensor) -> Tensor:
            logits = detector(x_adv.clone())  # copies: a model that normalises in place must not reach the iterate
            check_logits(logits, len(x_adv), largest + 1)
            classes, labels = logits[:, :-1], y.repeat(len(x_adv) // len(y))
            over = (detector.score(x_adv.clone()) - detector.threshold + self.slack).relu().to(classes.dtype)
            if self.once_fooled:
                over = over * (sign * losses.margin(classes, labels) > 0)
            return losses.cross_entropy(classes, labels) - sign * self.lam * over

        return loss

    def gradients(self, calls: int) -> int:
        """Two per call: the logits, and the score."""
        return 2 * calls

    def queries(self, calls: int) -> int:
        """At most one per call: where the loop only judges an iterate, the score is a second pass."""
        return calls
