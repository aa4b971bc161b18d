"""Losses want logits: a softmax saturates at 1, and takes the gradient with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firedoor import guard
from firedoor.diagnostics.outcomes import ids_of
from firedoor.diagnostics.randomised import answers
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["Probabilities"]


@dataclass(frozen=True)
class Probabilities:
    """A4: rows of the output that lie in [0, 1] and sum to 1, to within `slack`. fail: all of them; suspect: more than half.

    Log-probabilities (none above 0, logsumexp 0) are logits shifted by a constant, which no loss here feels: they pass, with a note.
    Blind to a sigmoid per class, and to probabilities that were scaled.

    Family: preflight.
    Reference: Carlini & Wagner 2016, arXiv:1607.04311.
    """

    slack: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.slack < 1:
            raise SpecError(f"Probabilities: slack must be in (0, 1), got {self.slack}. Try 1e-5.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that get a finite answer."""
        if not len(split):
            return Symptom("A4", "probabilities given", "cap", "not_run", "there is no image to ask about")
        with guard.no_side_effects(model):
            rows = answers(model, split.x, split.ids, "A4").double()
        finite = torch.isfinite(rows).all(1)
        n = int(finite.sum())
        if not n:
            return Symptom("A4", "probabilities given", "cap", "not_run", "no answer is finite")
        inside = (rows.amin(1) >= -self.slack) & (rows.amax(1) <= 1 + self.slack)
        given = finite & inside & ((rows.sum(1) - 1).abs() <= self.slack)
        logs = finite & (rows.amax(1) <= self.slack) & (rows.logsumexp(1).abs() <= self.slack)
        share = clopper_pearson(int(given.sum()), n)
        status = "fail" if share.value == 1 else "suspect" if share.value > 0.5 else "pass"
        text = f"softmax given: losses saturate, attack log p ({int(given.sum())} of {n} rows are probabilities)"
        if status == "pass":
            text = f"log p given, as good as logits ({n} rows)" if int(logs.sum()) == n else f"logits given ({n} rows)"
        ids = ids_of(split, given) if status != "pass" else ()
        return Symptom("A4", "probabilities given", "cap", status, text, share.value, 1.0, n, share.low, share.high, ids)

    def passes(self, n: int) -> int:
        """One answer."""
        return n
