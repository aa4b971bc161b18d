"""A model that may refuse to answer needs another rule of success: is a refusal a defence, or an error?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firedoor import guard
from firedoor.diagnostics.outcomes import ids_of
from firedoor.diagnostics.randomised import answers
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["Abstains"]


@dataclass(frozen=True)
class Abstains:
    """A11: more logits than the data has `classes`, or declared by `abstains`. fail: either.

    The value is the share of clean images that get one of the extra labels: printed apart, and an error in every rate.

    Family: preflight.
    Reference: Carlini & Wagner 2017, arXiv:1705.07263.
    """

    classes: int
    abstains: bool = False

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise SpecError(f"Abstains: classes must be 1 or more, got {self.classes}. Give the number of labels of the data.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that get a finite answer."""
        if not len(split):
            return Symptom("A11", "abstains", "note", "not_run", "there is no image to ask about")
        with guard.no_side_effects(model):
            given = answers(model, split.x, split.ids, "A11")
        finite = torch.isfinite(given).all(1)
        extra, n = given.shape[1] - self.classes, int(finite.sum())
        if not n:
            return Symptom("A11", "abstains", "note", "not_run", "no answer is finite")
        rejected = finite & (given.argmax(1) >= self.classes)
        share = clopper_pearson(int(rejected.sum()), n)
        text, status = f"never abstains: {given.shape[1]} logits for {self.classes} classes", "pass"
        if extra > 0 or self.abstains:
            how = f"{extra} logits beside the {self.classes} classes" if extra > 0 else "declared"
            text = f"needs a success rule that counts rejections ({how}; {int(rejected.sum())} of {n} clean images rejected)"
            status = "fail"
        return Symptom("A11", "abstains", "note", status, text, share.value, 0.0, n, share.low, share.high, ids_of(split, rejected))

    def passes(self, n: int) -> int:
        """One answer."""
        return n
