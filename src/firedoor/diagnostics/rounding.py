"""A success that only unrounded pixels have is lost when the image is saved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from firedoor import guard
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import ids_of, known, passes_of
from firedoor.diagnostics.silent_success import batches, is_8bit, overheard
from firedoor.intervals import LEAST_EFFECT, newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["Rounding"]


@dataclass(frozen=True)
class Rounding:
    """B3: success of the attack's output as floats, minus its success in 8 bits, on the images that the model gets right.

    Every rate elsewhere is of 8-bit images; this says what a float evaluation would have claimed beyond that. Both answers are of one
    draw of a random model. fail: more is lost than chance explains (exact one-sided McNemar test p < .01, a net loss over half a
    point, at least 8 discordant images). not_run: images that are not 8-bit, none known, or none fooled in either form.
    Errors: SpecError for a targeted attack; BudgetError if the attack leaves its budget.

    Family: attack health.
    Reference: Carlini & Wagner 2017 (discretization), arXiv:1608.04644.
    """

    attack: Attack

    def __post_init__(self) -> None:
        need_attacks("Rounding: attack", (self.attack,))

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B3", "survives rounding", "note", "not_run", "the images are not 8-bit: nothing is rounded")
        if not is_8bit(split.x):
            return sign
        kept = known(model, split)
        n = len(kept)
        if not n:
            return replace(sign, text="the model gets no image right, so nothing can be broken")
        x_adv = torch.cat([overheard(model, self.attack, batch, "B3", lambda _x, _logits: None) for batch in batches(kept)])
        saved = self.attack.threat.to_8bit(x_adv, kept.x).float() / 255
        with guard.no_side_effects(model):
            exact, rounded = (predict(model, x, kept.ids, 0, 1) for x in (x_adv, saved))
        exact, rounded = ((label != kept.y) & (label >= 0) for label in (exact, rounded))
        if not bool((exact | rounded).any()):
            return replace(sign, text="the attack fools nothing, so there is no success to lose", n=n)
        vanished, gained = exact & ~rounded, rounded & ~exact
        less, more = int(vanished.sum()), int(gained.sum())
        loss = newcombe(less, more, int((exact & rounded).sum()), int((~exact & ~rounded).sum()))
        fails = significant(less, more, n)
        text = f"{100 * loss.value:.1f} pt vanish when saved: float fools {int(exact.sum())} of {n} images, 8 bits {int(rounded.sum())}"
        text = text if fails else text.partition(": ")[2] + ": no loss beyond chance"
        return replace(
            sign,
            status="fail" if fails else "pass",
            text=text,
            value=loss.value,
            threshold=LEAST_EFFECT,
            n=n,
            low=loss.low,
            high=loss.high,
            examples=ids_of(kept, vanished),
        )

    def passes(self, n: int) -> int:
        """One clean answer, the attack, and its output in two forms."""
        return n * (3 + passes_of(self.attack))
