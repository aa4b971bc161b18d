"""With a budget that turns every image grey, nobody can do better than name the largest class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import fooled, ids_of, passes_of
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["GreyImage"]

SLACK = 1e-6  # of a float32 distance


@dataclass(frozen=True)
class GreyImage:
    """B10: accuracy under an attack whose budget reaches the grey image, against the share of the largest class.

    `attack` must reach grey from every image: Linf(0.5), or the norm's own largest distance to pixels of 0.5. The accuracy is over
    all images, also those that are wrong clean; answers that are not finite count as unfooled. fail: its lower bound
    (Clopper-Pearson, 95 %) is over the share of the largest class. not_run: the budget is too small, or the images are so few or so
    much of one class that no accuracy could fail.
    Errors: SpecError for a targeted attack.

    Family: gradient masking.
    Reference: Carlini et al. 2019 (at Linf 0.5 any image can be made grey), arXiv:1902.06705.
    """

    attack: Attack

    def __post_init__(self) -> None:
        need_attacks("GreyImage: attack", (self.attack,))

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over all images of `split`."""
        sign, n = Symptom("B10", "grey image", "mask", "not_run", "there is no image", n=len(split)), len(split)
        if not n:
            return sign
        majority = float(split.y.bincount().max()) / n
        if clopper_pearson(n, n).low <= majority:
            text = f"{n} images, {majority:.0%} of them of one class, are too few: even all right would be no sign"
            return replace(sign, text=text)
        threat = self.attack.threat
        away = float(threat.size(torch.full_like(split.x, 0.5) - split.x).max())
        if away > threat.eps * (1 + SLACK) + SLACK:
            return replace(sign, text=f"grey is {threat.norm} {away:.3g} away from some image, and the budget is {threat.eps:.3g}")
        right = ~fooled(model, self.attack, split, "B10")
        accuracy = clopper_pearson(int(right.sum()), n)
        fails = accuracy.low > majority
        counts = f"{int(right.sum())} of {n} right, the largest class has {majority:.0%}"
        text = (
            f"better than chance on a grey image: {counts}" if fails else f"no better than chance where grey is in reach: {counts}"
        )
        status = "fail" if fails else "pass"
        ids = ids_of(split, right) if fails else ()
        return Symptom("B10", "grey image", "mask", status, text, accuracy.value, majority, n, accuracy.low, accuracy.high, ids)

    def passes(self, n: int) -> int:
        """The attack, and one answer."""
        return n * (passes_of(self.attack) + 1)
