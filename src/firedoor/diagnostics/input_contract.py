"""A model that was trained on another range of pixels is measured far below what it is; the most frequent mistake of users."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firedoor import guard
from firedoor.diagnostics.outcomes import ids_of
from firedoor.diagnostics.randomised import answers
from firedoor.intervals import LEAST_DISCORDANT, LEAST_EFFECT, newcombe, significant
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["InputContract"]

PHOTOGRAPHS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the channels of ImageNet


@dataclass(frozen=True)
class InputContract:
    """A10: right answers for x, against 2x-1, 255x, and x less the mean over the deviation of its channels. fail: another range wins.

    Mean and deviation: those of the split, and with three channels also those of ImageNet. Wins: significantly, on the same images.
    The value is how much better the best other range is, with Newcombe's interval.

    Family: preflight.
    Reference: Carlini et al. 2019, arXiv:1902.06705.
    """

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split`."""
        n = len(split)
        if n < LEAST_DISCORDANT:
            text = f"{n} images are too few to tell: {LEAST_DISCORDANT} must differ"
            return Symptom("A10", "input contract", "void", "not_run", text, threshold=LEAST_EFFECT, n=n)
        with guard.no_side_effects(model):
            given = answers(model, split.x, split.ids, "A10")
            others = {name: _right(answers(model, x, split.ids, "A10"), split.y) for name, x in _ranges(split.x).items()}
        if not bool(torch.isfinite(given).all(1).any()):
            return Symptom("A10", "input contract", "void", "not_run", "no answer is finite", threshold=LEAST_EFFECT, n=n)
        own = _right(given, split.y)
        wins = [name for name, right in others.items() if significant(int((right & ~own).sum()), int((own & ~right).sum()), n)]
        best = max(wins or others, key=lambda name: int(others[name].sum()))
        right = others[best]
        only, lost, both = int((right & ~own).sum()), int((own & ~right).sum()), int((own & right).sum())
        gain = newcombe(only, lost, both, n - only - lost - both)
        text = f"{best} gets {float(right.float().mean()):.1%} right, x in [0, 1] {float(own.float().mean()):.1%} ({n} images)"
        text = f"preprocessing mismatch: {text}" if wins else f"pixels in [0, 1] suit the model: {text}"
        ids = ids_of(split, right & ~own) if wins else ()
        status = "fail" if wins else "pass"
        return Symptom("A10", "input contract", "void", status, text, gain.value, LEAST_EFFECT, n, gain.low, gain.high, ids)

    def passes(self, n: int) -> int:
        """One answer for each of five ranges."""
        return 5 * n


def _ranges(x: Tensor) -> dict[str, Tensor]:
    """x as other conventions would give it."""
    axes = [i for i in range(x.dim()) if i != 1] if x.dim() == 4 else list(range(x.dim()))
    mean, deviation = x.mean(axes, keepdim=True), x.std(axes, keepdim=True).clamp_min(1e-6)
    found = {"2x-1": 2 * x - 1, "255x": 255 * x, "(x-mean)/std": (x - mean) / deviation}
    if x.dim() == 4 and x.shape[1] == 3:
        m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in PHOTOGRAPHS)
        found["(x-mean)/std of ImageNet"] = (x - m) / s
    return found


def _right(given: Tensor, y: Tensor) -> Tensor:
    """(n,) true where the answer is finite and right."""
    return torch.isfinite(given).all(1) & (given.argmax(1) == y)
