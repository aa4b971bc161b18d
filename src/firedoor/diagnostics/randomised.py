"""A model that answers the same image differently each time: one draw of it is no measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.diagnostics.outcomes import BATCH, ids_of
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["Randomised", "answers"]


@dataclass(frozen=True)
class Randomised:
    """A2: the largest L2 distance between the answers of `draws` calls, each answer scaled to length 1; or another label.

    fail: over `distance`, or any label differs, and the model is not `declared` stochastic. One that is declared passes, if it does
    vary; suspect: declared, and all answers are the same to the bit, so what draws may have been switched off with training mode.

    Family: preflight.
    Reference: Athalye et al. 2018, sec. 3 (stochastic gradients) and 4.2, arXiv:1802.00420.
    """

    declared: bool
    draws: int = 5
    distance: float = 1e-4

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise SpecError(f"Randomised: draws must be 2 or more, got {self.draws}. Try 5.")
        if not 0 < self.distance < math.inf:
            raise SpecError(f"Randomised: distance must be positive, got {self.distance}. Try 1e-4.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split`."""
        if not len(split):
            return self._symptom("not_run", "there is no image to ask about", None, 0)
        with guard.no_side_effects(model):
            given = [answers(model, split.x, split.ids, "A2", draw) for draw in range(self.draws)]
        pairs = list(combinations(given, 2))
        apart = torch.stack([_apart(a, b) for a, b in pairs]).amax(0)
        flips = torch.stack([a.argmax(1) != b.argmax(1) for a, b in pairs]).any(0)
        judged = ~torch.isnan(apart)
        n = int(judged.sum())
        if not n:
            return self._symptom("not_run", "no answer is finite", None, 0)
        largest = float(apart[judged].max())
        moved = judged & (flips | (apart > self.distance))
        ids, k = ids_of(split, moved), int(moved.sum())
        found = f"{k} of {n} images vary, the label of {int((flips & judged).sum())}"
        if not self.declared:
            text = f"randomised: average over draws (EOT); {found}" if k else f"{self.draws} answers agree ({n} images)"
            return self._symptom("fail" if k else "pass", text, largest, n, ids)
        if largest == 0:
            text = f"declared stochastic, but {self.draws} draws agree to the bit on all {n} images: is what draws switched on?"
            return self._symptom("suspect", text, largest, n)
        return self._symptom("pass", f"randomised, as declared: rates are averaged over draws (EOT); {found}", largest, n, ids)

    def passes(self, n: int) -> int:
        """One answer per draw."""
        return self.draws * n

    def _symptom(self, status: str, text: str, value: float | None, n: int, ids: tuple[str, ...] = ()) -> Symptom:
        return Symptom("A2", "randomised", "cap", status, text, value, self.distance, n, examples=ids)


@torch.no_grad()
def answers(model: Classifier, x: Tensor, ids: Sequence[str], purpose: str, draw: int = 0) -> Tensor:
    """What the model answers, (n, k) on the CPU, in its own dtype. To be called inside `guard.no_side_effects`.

    (purpose, draw) fixes all that it draws, from the streams of `seed` and from the global generators: a call can be repeated.
    """
    given = []
    for i in range(0, len(x), BATCH):
        batch = x[i : i + BATCH].to(device.current(), copy=True)  # a copy: models may write to x
        with seed.streams(0, ids[i : i + BATCH], draw=draw, purpose=purpose), guard.keyed_generators(batch, purpose):
            given.append(model(batch).cpu())
    return torch.cat(given)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """(n,) L2 distance of answers of length 1; nan where neither is finite, 2 (the most there can be) where one is not."""
    finite_a, finite_b = torch.isfinite(a).all(1), torch.isfinite(b).all(1)
    distance = (_unit(a) - _unit(b)).square().sum(1).sqrt()
    distance = torch.where(finite_a != finite_b, torch.full_like(distance, 2.0), distance)
    return torch.where(finite_a | finite_b, distance, torch.full_like(distance, torch.nan))


def _unit(a: Tensor) -> Tensor:
    a = a.double()
    a = a / a.abs().amax(1, keepdim=True).clamp_min(1e-300)  # so that squares neither overflow nor vanish
    return a / a.square().sum(1, keepdim=True).sqrt().clamp_min(1e-300)
