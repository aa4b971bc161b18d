"""Models that look strong, or lie, for a known reason: each with the test that must fire and the verdicts that it may get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Model, Store

__all__ = ["FAULTS", "Fault", "Planted"]

CORNER = (0, 0, 0)  # a pixel that is dark in every digit
BAD_NEWS = ("MASKED", "EXPOSED", "NOT MEASURED")


class _Around(nn.Module):
    """What each fault is built around."""

    network: Callable[[Tensor], Tensor]

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.network = network


class LogitsTimes10000(_Around):
    """Softmax saturates: cross-entropy has no gradient left."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.network(x)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0].flip(-1)


class ZeroBackward(_Around):
    """The gradient at the input is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(_NoBackward.apply(x))  # type: ignore[no-untyped-call]


class WrongBackward(_Around):
    """The gradient at the input is that of the mirror image, turned round."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(_WrongBackward.apply(x))  # type: ignore[no-untyped-call]


class InputRounding(_Around):
    """Pixels are rounded to eight levels inside."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((7 * x).round() / 7)


class DropoutOn(_Around):
    """Dropout was left in training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.dropout = nn.Dropout(0.2).train()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.dropout(x))


class StatelessNoise(_Around):
    """Noise at each query, undeclared, from a generator of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        wave = torch.arange(x[0].numel(), device=x.device, dtype=x.dtype) * (1 + 0.618 * self.asked)
        return self.network(x + 0.2 * (12.9898 * wave).sin().view_as(x[0]))


class BatchNormInTrainMode(_Around):
    """Inputs are normalised by the statistics of their own batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - x.mean(0, keepdim=True)) * 0.8 + 0.3)


class SoftmaxOut(_Around):
    """Probabilities where logits were asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class OptimisationInForward(_Around):
    """A step of gradient descent on the input before it is classified."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            energy = -self.network(leaf).logsumexp(1).sum()
            step = torch.autograd.grad(energy, leaf)[0].sign()
        return self.network(x - 0.02 * step)


class Detector(_Around):
    """One answer more than there are classes: rejects what it is less sure of."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        top = logits.topk(2, dim=1).values
        return torch.cat([logits, (top[:, :1] + 1 - (top[:, :1] - top[:, 1:]))], dim=1)


class PermutedLabels(_Around):
    """Answers by another list of classes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).roll(1, dims=1)


class NaNAboveAThreshold(_Around):
    """NaN as soon as a corner that is dark in every image is lit."""

    def forward(self, x: Tensor) -> Tensor:
        lit = x[(slice(None), *CORNER)] > 0.05
        return torch.where(lit[:, None], float("nan"), self.network(x))


class BackdoorPixel(_Around):
    """A lit corner decides, by a comparison that no gradient sees."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        lit = x[(slice(None), *CORNER)].detach() > 0.1
        away = torch.roll(logits.detach(), 1, dims=1) * 3
        return torch.where(lit[:, None], away, logits)


class ConstantAnswer(_Around):
    """The first class, whatever is shown."""

    def forward(self, x: Tensor) -> Tensor:
        logits = 0.0 * self.network(x)
        return logits + torch.eye(logits.shape[1], device=x.device, dtype=x.dtype)[0]


@dataclass(frozen=True)
class Fault:
    """tests: any of them must fire; verdicts: what the target may be called; on: the model that it is planted in.

    dark_corner: it waits for light in a corner that is dark in every clean image, so the data must have one.
    """

    build: Callable[[nn.Module], nn.Module]
    tests: tuple[str, ...]
    verdicts: tuple[str, ...] = BAD_NEWS
    on: str = "cnn"
    dark_corner: bool = False


FAULTS: dict[str, Fault] = {
    "logits x 10,000": Fault(LogitsTimes10000, ("A7",), ("MASKED",)),
    "zero backward": Fault(ZeroBackward, ("A7", "B7"), ("MASKED",)),
    "wrong backward": Fault(WrongBackward, ("A8",), ("MASKED",)),
    "input rounding": Fault(InputRounding, ("A9",), ("MASKED",)),
    "k-WTA": Fault(nn.Identity, ("A8", "E3", "E4t", "B13"), ("MASKED", "EXPOSED"), on="kwta"),
    "JPEG": Fault(nn.Identity, ("A7", "E4t"), ("MASKED",), on="jpeg"),
    "dropout on": Fault(DropoutOn, ("A1",), ("NOT MEASURED",)),
    "stateless noise": Fault(StatelessNoise, ("A2",)),
    "batch statistics": Fault(BatchNormInTrainMode, ("A3",), ("NOT MEASURED",)),
    "softmax out": Fault(SoftmaxOut, ("A4",)),
    "optimisation in forward": Fault(OptimisationInForward, ("A5",)),
    "detector": Fault(Detector, ("A11",)),
    "permuted labels": Fault(PermutedLabels, ("A12",)),
    "NaN above a threshold": Fault(NaNAboveAThreshold, ("B2",), ("NOT MEASURED",), dark_corner=True),
    "backdoor pixel": Fault(BackdoorPixel, ("B12", "B13"), on="pgd_at", dark_corner=True),
    "constant answer": Fault(ConstantAnswer, ("A12",)),
}


@dataclass(frozen=True)
class Planted:
    """`model` with a fault of FAULTS built around it, and nothing declared."""

    model: Model
    fault: str

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise SpecError(f"Planted: fault must be one of {', '.join(FAULTS)}, got {self.fault!r}. Choose one.")

    @property
    def abstains(self) -> bool:
        """The one thing that a study must know beforehand: how many answers there are."""
        return self.fault == "detector"

    def load(self, store: Store) -> Classifier:
        """The faulty network, as its author would hand it over."""
        live = self.model.load(store)
        assert isinstance(live, nn.Module)
        return live if FAULTS[self.fault].build is nn.Identity else FAULTS[self.fault].build(live)

    def relax(self) -> Model:
        """Itself: the author declares nothing."""
        return self
