"""Some losses need three classes, some four; and a label that the model has no logit for cannot be right."""

from __future__ import annotations

from dataclasses import dataclass

from firedoor import guard
from firedoor.diagnostics.randomised import answers
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["ClassCount"]

IMAGES = 8  # enough to read the shape of an answer


@dataclass(frozen=True)
class ClassCount:
    """A6: K, the logits per image. fail: fewer than `needed`, or than the labels of the split use.

    `needed`: the most classes that an attack of the study wants (3 for the DLR loss, 4 for its targeted form, one more than the
    number of targets that an attack tries).

    Family: preflight.
    Reference: Croce & Hein 2020, eq. 6, arXiv:2003.01690.
    """

    needed: int = 2

    def __post_init__(self) -> None:
        if self.needed < 2:
            raise SpecError(f"ClassCount: needed must be 2 or more, got {self.needed}. Try 2.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the first few images of `split`, and all its labels."""
        if not len(split):
            return self._symptom("not_run", "there is no image to ask about", None, 0)
        few = split[slice(0, IMAGES)]
        with guard.no_side_effects(model):
            given = answers(model, few.x, few.ids, "A6")
        if given.dim() != 2:
            shape = tuple(given.shape)
            return self._symptom("fail", f"an answer must have shape (n, K), got {shape} for {len(few)} images", None, len(few))
        k, used = given.shape[1], int(split.y.max()) + 1
        limits = ["no DLR loss"] * (k < 3) + ["no targeted DLR loss"] * (k < 4)
        text = f"{k} classes" + (f": {', '.join(limits)}" if limits else "")
        if k < max(self.needed, used):
            why = f"the labels use {used}" if k < used else f"an attack of this study needs {self.needed}"
            return self._symptom("fail", f"loss not defined for {text}; {why}", k, len(few))
        return self._symptom("pass", text, k, len(few))

    def passes(self, n: int) -> int:
        """One answer for a few images."""
        return min(n, IMAGES)

    def _symptom(self, status: str, text: str, value: float | None, n: int) -> Symptom:
        return Symptom("A6", "class count", "note", status, text, value, self.needed, n)
