"""An attack that sees scores alone has less to go by than one with gradients; where it does better, the gradients mislead."""

from __future__ import annotations

from dataclasses import dataclass, replace

from firedoor.diagnostics.doubling import need_attacks, need_one_threat, union
from firedoor.diagnostics.outcomes import ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_EFFECT, clopper_pearson, significant
from firedoor.protocols import Access, Attack, Classifier, Split, Symptom

__all__ = ["GradientFree"]


@dataclass(frozen=True)
class GradientFree:
    """B13: whether `query`, which needs no gradients, fools more images than all of `gradient`, on those that the model knows.

    Both see all these images, not the survivors of one. fail: more than chance (exact one-sided McNemar test p < .01, a net effect
    over half a point, at least 8 discordant images). not_run: no image is known, or `query` moves none. A gradient attack that has
    not converged can lose on an honest model: B5 and B11 must pass before this may count as masking.
    Errors: SpecError for a `query` that needs gradients or asks nothing, for `gradient` attacks that need none, for targeted attacks
    and different threats.

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3.1, arXiv:1802.00420.
    """

    query: Attack
    gradient: tuple[Attack, ...]

    def __post_init__(self) -> None:
        need_attacks("GradientFree: query", (self.query,))
        need_attacks("GradientFree: gradient", self.gradient)
        need_one_threat("GradientFree", (self.query, *self.gradient))
        if self.query.needs >= Access.GRADIENTS or self.query.queries < 1:
            got = f"one that needs {self.query.needs.name} and asks {self.query.queries} times"
            raise SpecError(f"GradientFree: query must be an attack that asks and needs no gradients, got {got}. Use Square.")
        if any(a.needs < Access.GRADIENTS for a in self.gradient):
            raise SpecError(
                f"GradientFree: gradient must hold attacks that need gradients, got {[a.needs.name for a in self.gradient]}. Use APGD."
            )

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B13", "gradient-free wins", "mask", "not_run", "the model gets no image right, so nothing can be broken")
        kept = known(model, split)
        n = len(kept)
        if not n:
            return sign
        blind, moved = union(model, (self.query,), kept, "B13")
        if not moved:
            return replace(sign, text="the black box moves no image, so it is no test", n=n)
        white, _ = union(model, self.gradient, kept, "B13")
        gained, lost = blind & ~white, int((white & ~blind).sum())
        share = clopper_pearson(int(gained.sum()), n)
        beats = significant(int(gained.sum()), lost, n)
        counts = (
            f"without gradients {int(gained.sum())} of {n} images fall that the gradient misses, and {lost} stand that it fools"
        )
        text = f"black box beats white box: {counts}" if beats else counts
        status = "fail" if beats else "pass"
        ids = ids_of(kept, gained)
        return Symptom("B13", "gradient-free wins", "mask", status, text, share.value, LEAST_EFFECT, n, share.low, share.high, ids)

    def passes(self, n: int) -> int:
        """One clean answer; each attack, and one answer to it."""
        return n * (1 + sum(passes_of(a) + 1 for a in (self.query, *self.gradient)))
