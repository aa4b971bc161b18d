"""Random points of the ball are the weakest attack there is; where they find what gradients miss, gradients mislead."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor import guard, seed
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks, need_one_threat, union
from firedoor.diagnostics.outcomes import ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_DISCORDANT, clopper_pearson, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom
from firedoor.threat import Threat

__all__ = ["RandomSearch"]

ROUND = 10  # draws of each image at a time; part of the streams, so a constant


@dataclass(frozen=True)
class RandomSearch:
    """B12: whether the best of `points` random points of the ball fools images that `attacks` miss, of those that the model knows.

    Each draw gives two points: a uniform one, and the extreme one in its direction (for Linf a corner). An image is asked about no
    more once it is fooled. What is found is asked again in the draw in which the attacks are judged, so that a random model gets one
    answer per image and not one per point. fail: it fools at least `least` images that the attacks miss, and more than chance over
    those that only the attacks fool (exact one-sided McNemar test p < .01, over half a point). suspect: the former alone. not_run: no
    image is known, or the split has fewer than `images`. A large ball in few dimensions can fail on an honest model.
    Errors: SpecError for the fields, for no attacks, targeted ones, or different threats.

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3.1, arXiv:1802.00420.
    """

    attacks: tuple[Attack, ...]
    points: int = 10_000
    images: int = 100
    least: int = LEAST_DISCORDANT

    def __post_init__(self) -> None:
        need_attacks("RandomSearch: attacks", self.attacks)
        need_one_threat("RandomSearch", self.attacks)
        if self.points < 2:
            raise SpecError(f"RandomSearch: points must be 2 or more, got {self.points}. Try 10000: each draw gives two.")
        if self.images < 1 or self.least < 1:
            raise SpecError(f"RandomSearch: images and least must be 1 or more, got {self.images} and {self.least}. Try 100 and 8.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B12", "random search", "mask", "not_run", "the model gets no image right, so nothing can be broken")
        if len(split) < self.images:
            return replace(sign, text=f"{self.images} images are needed, and there are {len(split)}", n=len(split))
        kept = known(model, split)
        n = len(kept)
        if not n:
            return sign
        mine, _ = union(model, self.attacks, kept, "B12")
        found = self._found(model, kept, self.attacks[0].threat)
        gained, lost = found & ~mine, int((mine & ~found).sum())
        k = int(gained.sum())
        beats = k >= self.least and significant(k, lost, n)
        status = "fail" if beats else "suspect" if k >= self.least else "pass"
        counts = f"the best of {self.points} random points fools {k} of {n} images that the attack misses, and misses {lost} that it fools"
        text = f"random noise beats the attack: {counts}" if beats else counts
        share = clopper_pearson(k, n)
        ids = ids_of(kept, gained)
        return Symptom("B12", "random search", "mask", status, text, share.value, self.least / n, n, share.low, share.high, ids)

    def passes(self, n: int) -> int:
        """At most: one clean answer, each attack and one answer to it, every point, and one answer to what was found."""
        return n * (2 + self.points + sum(passes_of(a) + 1 for a in self.attacks))

    def _found(self, model: Classifier, split: Split, threat: Threat) -> Tensor:
        """(n,) true where the model's label for some random point is not y."""
        x_best, found = split.x.clone(), torch.zeros(len(split), dtype=torch.bool)
        draws, eight_bit = self.points // 2, bool(((255 * split.x).round() / 255 == split.x).all())
        with guard.no_side_effects(model), torch.no_grad():
            for turn in range(0, draws, ROUND):
                left = (~found).nonzero()[:, 0]
                if not len(left):
                    break
                ids = tuple(split.ids[i] for i in left.tolist())
                rows = left.repeat(2 * min(ROUND, draws - turn))
                x_adv = _points(split.x[rows[: len(rows) // 2]], ids, turn, threat)
                if eight_bit:
                    x_adv = threat.to_8bit(x_adv, split.x[rows]).float() / 255
                label = predict(model, x_adv, tuple(f"{ids[r % len(ids)]}/{turn}/{r}" for r in range(len(rows))), 0)
                wrong = ((label != split.y[rows]) & (label >= 0)).view(-1, len(left))
                first, hit = wrong.int().argmax(0), wrong.any(0)
                chosen = x_adv.view(-1, len(left), *x_adv.shape[1:])[first, torch.arange(len(left))]
                x_best[left[hit]], found[left[hit]] = chosen[hit], True
            label = predict(model, x_best, split.ids, 0, 1)
        return found & (label != split.y) & (label >= 0)


def _points(x: Tensor, ids: tuple[str, ...], turn: int, threat: Threat) -> Tensor:
    """(2 m n, *shape) for x (m n, *shape): m uniform points of each of the n images, then the extreme ones in their directions."""
    with seed.streams(0, ids, draw=turn, purpose="B12"):
        inner = threat.start(x)
    return torch.cat((inner, threat.step(x, x, inner - x, threat.eps)))
