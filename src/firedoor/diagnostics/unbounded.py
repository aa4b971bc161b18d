"""With the whole pixel box to move in, an attack that still fails is broken, or is being misled."""

from __future__ import annotations

from dataclasses import dataclass

from firedoor.diagnostics.outcomes import fooled, ids_of, known, passes_of
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["Unbounded"]


@dataclass(frozen=True)
class Unbounded:
    """B7: the share of correctly classified images that `attack` cannot break with no budget at all.

    suspect: any; fail: more than 1 %. The interval is the exact one of 95 %.

    `attack` must be given with the whole box as its budget (Linf(1), or the norm's own largest distance).

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3.1, arXiv:1802.00420.
    """

    attack: Attack
    share: float = 0.01

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        kept = known(model, split)
        if not len(kept):
            return Symptom("B7", "unbounded", "mask", "not_run", "the model gets no image right, so nothing can be broken")
        left = ~fooled(model, self.attack, kept, "B7")
        n, k = len(kept), int(left.sum())
        found = clopper_pearson(k, n)
        status = "fail" if k > self.share * n else "suspect" if k else "pass"
        text = f"{k} of {n} images survive an attack without any budget" if k else f"without a budget all {n} images fall"
        return Symptom("B7", "unbounded", "mask", status, text, k / n, self.share, n, found.low, found.high, ids_of(kept, left))

    def passes(self, n: int) -> int:
        """Two answers, and the attack."""
        return n * (2 + passes_of(self.attack))
