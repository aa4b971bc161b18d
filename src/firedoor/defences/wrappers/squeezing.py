"""A detector: where the answer changes much with small details of the picture taken away, none is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from firedoor import device
from firedoor.defences.wrappers.bit_depth import BitDepth
from firedoor.defences.wrappers.median import Median
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Classifier, Split, Store, Wrapper

__all__ = ["Detector", "Squeezing", "threshold_at"]

SQUEEZERS: tuple[Wrapper, ...] = (BitDepth(), Median(2))
BATCH = 100  # images at a time when a threshold is looked for


@dataclass(frozen=True)
class Squeezing:
    """Rejects x if the score, max over q of |softmax z(x) - softmax z(q(x))|_1 (0 to 2), is above `threshold`; q are `squeezers`.

    (n, k) logits become (n, k+1): the last one is the largest where x is rejected, and the smallest elsewhere. `threshold` is found
    once, on clean development images, for a stated share of false alarms, and then written into the study:
    `threshold_at(model.load(store), data.split("development"), squeezers, 0.05)`. The live module has `score` and `threshold`, which
    the objective Undetected asks for. relax goes through the relax of each squeezer, and its last logit is the largest one plus
    a multiple of score - threshold: the same labels, and a slope everywhere.
    Errors: SpecError for a threshold outside [0, 2], no squeezer, or one that draws at random.

    Family: input transformation. Year: 2018.
    Reference: Xu et al. 2018, arXiv:1704.01155.
    """

    threshold: float
    squeezers: tuple[Wrapper, ...] = SQUEEZERS

    stochastic: ClassVar[bool] = False
    abstains: ClassVar[bool] = True
    detects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 2:
            raise SpecError(f"Squeezing: threshold must be in [0, 2], got {self.threshold}. Find one with `threshold_at`.")
        _check(self.squeezers)

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Detector(model, [q.wrap(model, store) for q in self.squeezers], self.threshold, smooth=False)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Detector(model, [q.relax(model, store) for q in self.squeezers], self.threshold, smooth=True)


class Detector(nn.Module):
    """The logits of `model` and one more for "rejected"; see `Squeezing`. squeezed: the model behind each squeezer."""

    def __init__(self, model: Classifier, squeezed: Sequence[Classifier], threshold: float, smooth: bool) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.squeezed = nn.ModuleList(q if isinstance(q, nn.Module) else _Called(q) for q in squeezed)
        self.squeezed.training = False
        self.threshold = threshold
        self.smooth = smooth

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) to logits (n, k+1)."""
        logits = self.model(x)
        excess = (self._score(x, logits) - self.threshold).to(logits.dtype)
        top, low = logits.amax(1), logits.amin(1)
        if self.smooth:
            last = top + _unit(top) * excess
        else:
            last = torch.where(excess > 0, top + _unit(top), low - _unit(low))
        return torch.cat([logits, last[:, None]], 1)

    def score(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """How much the answer changes at most, from 0 to 2; NaN where a logit is."""
        return self._score(x, self.model(x))

    def _score(self, x: Tensor, logits: Tensor) -> Tensor:
        p = logits.double().softmax(1)  # in float32 the slope of a sure answer is 0 from a margin of 17 on
        return torch.stack([(q(x).double().softmax(1) - p).abs().sum(1) for q in self.squeezed]).amax(0).to(logits.dtype)


class _Called(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.training = False
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)


@torch.no_grad()
def threshold_at(
    model: Classifier, split: Split, squeezers: tuple[Wrapper, ...] = SQUEEZERS, rate: float = 0.05, store: Store | None = None
) -> float:
    """The lowest score that at most a share `rate` of these clean images exceeds: the threshold of a detector around a live model.

    `split`: the development part, never the images that are reported. Errors: SpecError for rate outside [0, 1) or the squeezers;
    DataError for no images; ModelRefused where the model gives no finite answer.
    """
    if not 0 <= rate < 1:
        raise SpecError(f"threshold_at: rate must be in [0, 1), got {rate}. Try 0.05.")
    if not len(split):
        raise DataError("threshold_at needs clean images to look at, got none. Give the development part.")
    _check(squeezers)
    detector = Detector(model, [q.wrap(model, store) for q in squeezers], 0.0, smooth=False)
    x = split.x.to(device.current())
    scores = torch.cat([detector.score(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    if not bool(torch.isfinite(scores).all()):
        raise ModelRefused("threshold_at needs finite logits for every clean image, got NaN or Inf. Check the model.")
    over = math.floor(rate * len(scores) + 1e-9)  # how many may be above
    return float(scores.sort(descending=True).values[over])


def _unit(logit: Tensor) -> Tensor:
    """Steps that still count beside a logit as large as this."""
    return 1 + logit.detach().abs()


def _check(squeezers: tuple[Wrapper, ...]) -> None:
    if not isinstance(squeezers, tuple) or not squeezers:
        raise SpecError(f"Squeezing: squeezers must be a tuple of wrappers, got {squeezers!r}. Write (BitDepth(4), Median(2)).")
    if drawing := [type(q).__name__ for q in squeezers if q.stochastic]:
        raise SpecError(f"Squeezing: squeezers must not draw at random, got {', '.join(drawing)}. Use BitDepth or Median.")
