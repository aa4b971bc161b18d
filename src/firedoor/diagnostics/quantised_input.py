"""Rounding the input hides every change that is smaller than a stair, and its gradient with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firedoor import guard, seed
from firedoor.diagnostics.outcomes import ids_of
from firedoor.diagnostics.randomised import answers
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["QuantisedInput"]

WIDE = 0.25  # noise that a model which listens at all must hear
FINER = 10  # the same again with less noise: stairs that do not fall on 8-bit levels


@dataclass(frozen=True)
class QuantisedInput:
    """A9: images whose answers to `draws` copies, x + U(-radius, radius), are the same to the bit. fail: more than half; suspect: > `share`.

    Also with a tenth of the radius, since pixels beside a stair that is off the 8-bit grid give it away otherwise. Images whose answer
    wide noise does not change either are not judged: there the answer is flat, whatever is done to the input.

    Family: preflight.
    Reference: Athalye et al. 2018, sec. 4.1, arXiv:1802.00420.
    """

    radius: float = 0.4 / 255
    draws: int = 8
    share: float = 0.01
    images: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.radius < 0.5 / 255:
            raise SpecError(f"QuantisedInput: radius must be in (0, 0.5/255), half a level, got {self.radius}. Try 0.4/255.")
        if not 0 < self.share < 0.5:
            raise SpecError(f"QuantisedInput: share must be in (0, 0.5), got {self.share}. Try 0.01.")
        if self.draws < 2 or self.images < 1:
            raise SpecError(
                f"QuantisedInput: draws must be 2 or more and images 1 or more, got {self.draws} and {self.images}. Try 8 and 64."
            )

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the first `images` of `split` that can be judged."""
        few = split[slice(0, self.images)]
        if not len(few):
            return Symptom("A9", "input quantised", "cap", "not_run", "there is no image to ask about")
        with guard.no_side_effects(model):
            plain, wide = answers(model, few.x, few.ids, "A9"), answers(model, _noisy(few, WIDE, 0), few.ids, "A9")
            same = self._same(model, few, self.radius) | self._same(model, few, self.radius / FINER)
        judged = torch.isfinite(plain).all(1) & (plain != wide).any(1)
        n, rounded = int(judged.sum()), judged & same
        if not n:
            return Symptom("A9", "input quantised", "cap", "not_run", "no answer changes, even with wide noise on the input")
        if bool(((plain == 0) | (plain == 1)).all() and (plain.sum(1) == 1).all()):
            return Symptom("A9", "input quantised", "cap", "not_run", "the model gives labels only, which are flat by nature")
        share = clopper_pearson(int(rounded.sum()), n)
        status = "fail" if share.value > 0.5 else "suspect" if share.low > self.share else "pass"
        text = f"{int(rounded.sum())} of {n} answers stay the same to the bit under noise of {255 * self.radius:.2g}/255"
        text = f"input is rounded inside: attack through relax ({text})" if status != "pass" else text
        ids = ids_of(few, rounded)
        return Symptom("A9", "input quantised", "cap", status, text, share.value, 0.5, n, share.low, share.high, ids)

    def passes(self, n: int) -> int:
        """The draws at two radii, and an answer with wide noise and one with none."""
        return min(n, self.images) * (2 * self.draws + 2)

    def _same(self, model: Classifier, split: Split, radius: float) -> Tensor:
        """(n,) true where all draws get one answer."""
        given = [answers(model, _noisy(split, radius, draw), split.ids, "A9") for draw in range(self.draws)]
        return torch.stack([(a == given[0]).all(1) for a in given]).all(0)


def _noisy(split: Split, radius: float, draw: int) -> Tensor:
    """x + U(-radius, radius), turned round where it would leave the pixel box."""
    with seed.streams(0, split.ids, draw=draw, purpose="A9 noise"):
        u = seed.uniform(split.x, -radius, radius)
    moved = split.x + u
    return torch.where((moved < 0) | (moved > 1), split.x - u, moved)
