"""A door between two networks: what looks attacked is answered by the hardened one, everything else by the model as it is."""

from __future__ import annotations

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
    """log((1 - s) softmax f(x) + s softmax h(x)), with s the sigmoid of the first output of `alarm`, and h the `hardened` network.

    f is not trained again: it keeps its accuracy on whatever raises no alarm. h need not be good on clean images. Nothing here is
    hidden from a white-box attacker, who may fool the alarm, or both networks: relax gives the same answers and goes back through the
    mean of both networks' log-probabilities, whatever the alarm says; the gradient as it stands is attacked too.
    Errors: SpecError without a store.

    Family: adversarial training. Year: 2023.
    Reference: after Bai et al. 2023, sec. 4, arXiv:2301.12554, here with an alarm for transferred examples only.
    """

    hardened: Model
    alarm: Model

    stochastic: ClassVar[bool] = False

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _Gated(model, *(_loaded(m, store) for m in (self.hardened, self.alarm)))

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return _ThroughBoth(model, *(_loaded(m.relax(), store) for m in (self.hardened, self.alarm)))


def _loaded(model: Model, store: Store | None) -> Classifier:
    if store is None:
        raise SpecError("Gate needs a store to load its networks from, got None. Pass the store of the study.")
    return model.load(store)


def _mixture(calm: Tensor, alert: Tensor, alarm: Tensor) -> Tensor:
    return (F.logsigmoid(-alarm) + calm).logaddexp(F.logsigmoid(alarm) + alert)


class _Gated(nn.Module):
    def __init__(self, model: Classifier, hardened: Classifier, alarm: Classifier) -> None:
        super().__init__()
        self.training = False
        self.model, self.hardened, self.alarm = model, hardened, alarm

    def forward(self, x: Tensor) -> Tensor:
        return _mixture(*self.parts(x))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the model and of the hardened network, and the alarm, one column."""
        return self.model(x).log_softmax(1), self.hardened(x).log_softmax(1), self.alarm(x)[:, :1]


class _ThroughBoth(_Gated):
    """The same answers; back through the mean of both networks' log-probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        calm, alert, alarm = self.parts(x)
        with torch.no_grad():
            exact = _mixture(calm, alert, alarm)
        return value_of(exact, gradient_of=(calm + alert) / 2)
