"""A door between two networks: what looks attacked is answered by the hardened one, everything else by the model as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor.defences.straight_through import value_of
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Model, Store

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate:
    """log((1 - s) softmax f(x) + s softmax h(x)), with s the sigmoid of the first output of `alarm` less `threshold`; h is `hardened`.

    A threshold is to be chosen on development images: the higher, the fewer false alarms, and the more attacks that pass. f is not trained again: it keeps its accuracy on whatever raises no alarm. h need not be good on clean images. Nothing here is
    hidden from a white-box attacker, who may fool the alarm, or both networks: relax gives the same answers and goes back through the
    mean of both networks' log-probabilities, whatever the alarm says; the gradient as it stands is attacked too.
    Errors: SpecError for a threshold that is not finite, and without a store.

    Family: adversarial training. Year: 2023.
    Reference: after Bai et al. 2023, sec. 4, arXiv:2301.12554, here with an alarm for transferred examples only.
    """

    hardened: Model
    alarm: Model
    threshold: float = 0.0

    stochastic: ClassVar[bool] = False
    trained: ClassVar[tuple[str, ...]] = ("hardened", "alarm")  # another seed of the defence has others

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise SpecError(f"Gate: threshold must be finite, got {self.threshold}. It is a logit; try 0.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _Gated(model, _loaded(self.hardened, store), _loaded(self.alarm, store), self.threshold)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        hardened, alarm = (_loaded(m.relax(), store) for m in (self.hardened, self.alarm))
        return _ThroughBoth(model, hardened, alarm, self.threshold)


def _loaded(model: Model, store: Store | None) -> Classifier:
    if store is None:
        raise SpecError("Gate needs a store to load its networks from, got None. Pass the store of the study.")
    return model.load(store)


def _mixture(calm: Tensor, alert: Tensor, alarm: Tensor) -> Tensor:
    return (F.logsigmoid(-alarm) + calm).logaddexp(F.logsigmoid(alarm) + alert)


class _Gated(nn.Module):
    def __init__(self, model: Classifier, hardened: Classifier, alarm: Classifier, threshold: float) -> None:
        super().__init__()
        self.training = False
        self.model, self.hardened, self.alarm, self.threshold = model, hardened, alarm, threshold

    def forward(self, x: Tensor) -> Tensor:
        return _mixture(*self.parts(x))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the model and of the hardened network, and the alarm over the threshold, one column."""
        return self.model(x).log_softmax(1), self.hardened(x).log_softmax(1), self.alarm(x)[:, :1] - self.threshold


class _ThroughBoth(_Gated):
    """The same answers; back through the mean of both networks' log-probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        calm, alert, alarm = self.parts(x)
        with torch.no_grad():
            exact = _mixture(calm, alert, alarm)
        return value_of(exact, gradient_of=(calm + alert) / 2)
