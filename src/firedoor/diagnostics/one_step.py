"""Many steps can do all that one step can; where they do less, the gradient near the image leads away from what it hides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks, need_one_threat
from firedoor.diagnostics.outcomes import attacked, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_DISCORDANT, LEAST_EFFECT, newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["OneStepBeatsMany"]


@dataclass(frozen=True)
class OneStepBeatsMany:
    """B8: whether `one` (FGSM) fools images that `many` (PGD) does not, on those that the model gets right.

    fail: more than the reverse (exact one-sided McNemar test p < .01, a net effect over half a point, at least 8 discordant images).
    For the model attacked only: between models one step often transfers better. Both are judged in one draw of a random model.
    not_run: fewer than 8 images are known, or `one` moves none of them, as where the gradient is zero.
    Errors: SpecError for targeted attacks, two threats, or `many` that takes no more gradients than `one`.

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3.1, arXiv:1802.00420.
    """

    one: Attack
    many: Attack

    def __post_init__(self) -> None:
        need_attacks("OneStepBeatsMany: one", (self.one,))
        need_attacks("OneStepBeatsMany: many", (self.many,))
        need_one_threat("OneStepBeatsMany", (self.one, self.many))
        if self.many.gradients <= self.one.gradients:
            raise SpecError(
                f"OneStepBeatsMany: many must take more gradients than one, {self.one.gradients}, got {self.many.gradients}. "
                "Give FGSM and PGD."
            )

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B8", "one step beats many", "mask", "not_run", "")
        kept = known(model, split)
        n = len(kept)
        if n < LEAST_DISCORDANT:
            return replace(sign, text=f"the model gets {n} images right, and {LEAST_DISCORDANT} are needed", n=n)
        moved = [attacked(model, attack, kept, "B8") for attack in (self.one, self.many)]
        if torch.equal(moved[0], kept.x):
            return replace(sign, text="the one-step attack moves no image, so it is no test", n=n)
        labels = (predict(model, x_adv, kept.ids, 0, 1) for x_adv in moved)
        one, many = ((label != kept.y) & (label >= 0) for label in labels)
        gained, lost = one & ~many, many & ~one
        more, less = int(gained.sum()), int(lost.sum())
        lead = newcombe(more, less, int((one & many).sum()), int((~one & ~many).sum()))
        beats = significant(more, less, n)
        counts = f"one step fools {int(one.sum())} of {n} images, many fool {int(many.sum())}; {more} fall to one step alone"
        text = f"one-step beats iterative: {counts}" if beats else counts
        status = "fail" if beats else "pass"
        ids = ids_of(kept, gained)
        return replace(
            sign,
            status=status,
            text=text,
            value=lead.value,
            threshold=LEAST_EFFECT,
            n=n,
            low=lead.low,
            high=lead.high,
            examples=ids,
        )

    def passes(self, n: int) -> int:
        """One clean answer; each attack, and one answer to it."""
        return n * (3 + passes_of(self.one) + passes_of(self.many))
