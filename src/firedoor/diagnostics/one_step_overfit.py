"""A network trained against single steps can learn to beat the single step, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from firedoor.diagnostics.doubling import need_attacks, need_one_threat, union
from firedoor.diagnostics.outcomes import fooled, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["OneStepOverfit"]


@dataclass(frozen=True)
class OneStepOverfit:
    """B17: accuracy under the one-step attack `one` minus accuracy under the long attack `many`, on all images.

    For a network that trained on adversarial examples, at the eps of its training, where both figures should be close; on any other
    network one step is merely weak, and the gap means nothing. fail: the lower bound of the gap (Newcombe's paired interval, 95 %) is
    over `gap`. not_run: no image is known, `many` moves none, or `many` fools fewer than `one` (see B8), so it is no yardstick.
    Errors: SpecError for targeted attacks, different threats, or `many` that takes no more passes than `one`.

    Family: gradient masking.
    Reference: Wong et al. 2020 (catastrophic overfitting), arXiv:2001.03994; Tramer et al. 2018, arXiv:1705.07204.
    """

    one: Attack
    many: Attack
    gap: float = 0.20

    def __post_init__(self) -> None:
        need_attacks("OneStepOverfit: one and many", (self.one, self.many))
        need_one_threat("OneStepOverfit", (self.one, self.many))
        few, most = passes_of(self.one), passes_of(self.many)
        if most <= few:
            raise SpecError(f"OneStepOverfit: many must take more passes than one, {few}, got {most}. Give FGSM and PGD-50.")
        if not 0 <= self.gap < 1:
            raise SpecError(f"OneStepOverfit: gap must be in [0, 1), got {self.gap}. Try 0.20.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over all images of `split`."""
        sign = Symptom("B17", "one-step overfit", "mask", "not_run", "the model gets no image right", n=len(split))
        if not len(known(model, split)):
            return sign
        fell, moved = union(model, (self.many,), split, "B17")
        if not moved:
            return replace(sign, text="the long attack moves no image, so it is no yardstick")
        stood, held = ~fooled(model, self.one, split, "B17"), ~fell
        only_one, only_many, n = int((stood & fell).sum()), int((held & ~stood).sum()), len(split)
        if significant(only_many, only_one, n):
            return replace(sign, text="the long attack fools fewer than one step does, so it is no yardstick (see B8)")
        gap = newcombe(only_one, only_many, int((stood & held).sum()), int((~stood & fell).sum()))
        fails = gap.low > self.gap
        rates = (
            f"accuracy {float(stood.float().mean()):.0%} under one step, {float(held.float().mean()):.0%} under many ({n} images)"
        )
        text = f"learned to beat one step only: {rates}" if fails else rates
        status = "fail" if fails else "pass"
        ids = ids_of(split, stood & fell) if fails else ()
        return Symptom("B17", "one-step overfit", "mask", status, text, gap.value, self.gap, n, gap.low, gap.high, ids)

    def passes(self, n: int) -> int:
        """One clean answer; both attacks, and one answer to each."""
        return n * (3 + passes_of(self.one) + passes_of(self.many))
