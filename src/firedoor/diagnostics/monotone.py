"""A larger budget allows all that a smaller one does, so an attack that does worse with it is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import fooled, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_EFFECT, newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["Monotone"]

RADII = 5


@dataclass(frozen=True)
class Monotone:
    """B9: whether success falls from one eps to the next, over five or more, on the images that the model gets right.

    `attacks`: one attack at rising eps of one norm; all draw from the same streams. fail: between some neighbours the fall is more
    than chance (exact one-sided McNemar test p < .01, over half a point, at least 8 discordant images). not_run: no image is known,
    or none falls at any eps. A step size that does not shrink with eps can fail at tiny eps on an honest model.
    Errors: SpecError for fewer than five attacks, eps that do not rise, different norms, or targeted attacks.

    Family: attack health.
    Reference: Athalye et al. 2018, sec. 3.1, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        need_attacks("Monotone: attacks", self.attacks)
        sizes = [a.threat.eps for a in self.attacks]
        if len(sizes) < RADII or any(b <= a for a, b in pairwise(sizes)):
            raise SpecError(
                f"Monotone: attacks must have {RADII} or more rising eps, got {sizes}. Repeat one attack at larger eps."
            )
        norms = sorted({a.threat.norm for a in self.attacks})
        if len(norms) > 1:
            raise SpecError(f"Monotone: attacks must share one norm, got {', '.join(norms)}. Budgets of two norms have no order.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B9", "monotone in eps", "cap", "not_run", "the model gets no image right, so nothing can be broken")
        kept = known(model, split)
        n = len(kept)
        if not n:
            return sign
        won = [fooled(model, attack, kept, "B9") for attack in self.attacks]
        if not any(bool(w.any()) for w in won):
            return replace(sign, text=f"no image falls at any of {len(won)} budgets, so there is nothing to compare", n=n)
        i = max(range(len(won) - 1), key=lambda i: _fall(won[i], won[i + 1]))
        smaller, larger = won[i], won[i + 1]
        fails, _ = _fall(smaller, larger)
        lost, gained = smaller & ~larger, larger & ~smaller
        fall = newcombe(int(lost.sum()), int(gained.sum()), int((smaller & larger).sum()), int((~smaller & ~larger).sum()))
        rates = [f"{float(w.float().mean()):.0%} at {a.threat.eps:.3g}" for w, a in zip(won, self.attacks, strict=True)]
        text = (
            f"success falls as the budget grows: from {rates[i]} to {rates[i + 1]} ({n} images)"
            if fails
            else f"success does not fall as the budget grows: {', '.join(rates)} ({n} images)"
        )
        return Symptom(
            "B9",
            "monotone in eps",
            "cap",
            "fail" if fails else "pass",
            text,
            fall.value,
            LEAST_EFFECT,
            n,
            fall.low,
            fall.high,
            ids_of(kept, lost) if fails else (),
        )

    def passes(self, n: int) -> int:
        """One clean answer; each attack, and one answer to it."""
        return n * (1 + sum(passes_of(a) + 1 for a in self.attacks))


def _fall(smaller: Tensor, larger: Tensor) -> tuple[bool, int]:
    """(whether more than chance, net number of images) that the larger budget loses."""
    lost, gained = int((smaller & ~larger).sum()), int((larger & ~smaller).sum())
    return significant(lost, gained, len(smaller)), lost - gained
