"""An attack that gets better with twice the effort had not finished, so its rate is no bound.

What other signs share lives here too: the union of several attacks, and what they ask of the attacks they are given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor.craft import predict
from firedoor.diagnostics.outcomes import attacked, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_EFFECT, newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["Doubling", "need_attacks", "need_one_threat", "union"]

LEAST_WORK = 1.5  # times the passes: APGD with twice the steps takes a little less than twice


@dataclass(frozen=True)
class Doubling:
    """B11: whether twice the steps and twice the restarts fool more images, on those that the model gets right.

    `attacks` as they are run, `doubled` the same with twice the steps, twice the restarts, or both; any number of each, and the
    images that one of them fools are compared. fail: `doubled` fools more (exact one-sided McNemar test p < .01, a net gain over half
    a point, at least 8 discordant images). not_run: no image is known, or `doubled` moves none.
    Errors: SpecError for no attacks, targeted ones, different threats, or `doubled` that does not take 1.5 times the passes.

    Family: attack health.
    Reference: Carlini et al. 2019 (doubling the iterations must not help), arXiv:1902.06705.
    """

    attacks: tuple[Attack, ...]
    doubled: tuple[Attack, ...]

    def __post_init__(self) -> None:
        need_attacks("Doubling: attacks", self.attacks)
        need_attacks("Doubling: doubled", self.doubled)
        need_one_threat("Doubling", (*self.attacks, *self.doubled))
        before, after = (sum(map(passes_of, a)) for a in (self.attacks, self.doubled))
        if after < LEAST_WORK * before or after == 0:
            raise SpecError(
                f"Doubling: doubled must take {LEAST_WORK} times the passes of attacks, {before}, or more, got {after}. "
                "Give it twice the steps or restarts."
            )

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B11", "doubling", "cap", "not_run", "the model gets no image right, so nothing can be broken")
        kept = known(model, split)
        if not len(kept):
            return sign
        once, _ = union(model, self.attacks, kept, "B11")
        twice, moved = union(model, self.doubled, kept, "B11")
        if not moved:
            return replace(sign, text="the attack moves no image, so more of it is no test", n=len(kept))
        gained, lost = twice & ~once, once & ~twice
        more, less, n = int(gained.sum()), int(lost.sum()), len(kept)
        gain = newcombe(more, less, int((once & twice).sum()), int((~once & ~twice).sum()))
        still = significant(more, less, n)
        counts = f"twice the effort fools {int(twice.sum())} of {n} images, once {int(once.sum())}"
        text = f"still improving: not an upper bound; {counts}" if still else f"{counts}: no gain beyond chance"
        return Symptom(
            "B11",
            "doubling",
            "cap",
            "fail" if still else "pass",
            text,
            gain.value,
            LEAST_EFFECT,
            n,
            gain.low,
            gain.high,
            ids_of(kept, gained),
        )

    def passes(self, n: int) -> int:
        """One clean answer; each attack, and one answer to it."""
        return n * (1 + sum(passes_of(a) + 1 for a in (*self.attacks, *self.doubled)))


def union(model: Classifier, attacks: tuple[Attack, ...], split: Split, purpose: str) -> tuple[Tensor, bool]:
    """(n,) true where some attack fools the model, and whether any image was moved at all: who stands still proves nothing.

    All are judged in the same draw of a random model, so that more attacks are not more chances.
    """
    some, moved = torch.zeros(len(split), dtype=torch.bool), False
    for attack in attacks:
        x_adv = attacked(model, attack, split, purpose)
        label = predict(model, x_adv, split.ids, 0, 1)
        some |= (label != split.y) & (label >= 0)
        moved |= not torch.equal(x_adv, split.x)
    return some, moved


def need_attacks(field: str, attacks: tuple[Attack, ...]) -> None:
    """Errors: SpecError unless there is an attack, and all leave the label: the labels given to them are the true ones."""
    if not isinstance(attacks, tuple) or not attacks:
        raise SpecError(f"{field} must be a tuple of one attack or more, got {attacks!r}. Write (attack,).")
    if any(a.threat.targeted for a in attacks):
        raise SpecError(f"{field} must be untargeted, got targeted=True. Remove it: labels are the ones to leave.")


def need_one_threat(who: str, attacks: tuple[Attack, ...]) -> None:
    """Errors: SpecError unless all attacks have the same norm and eps."""
    threats = {(a.threat.norm, a.threat.eps) for a in attacks}
    if len(threats) > 1:
        raise SpecError(f"{who}: all attacks must have one threat, got {sorted(threats)}. Compare them at the same budget.")
