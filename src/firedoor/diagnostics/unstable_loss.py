"""Where the loss jumps between neighbours, its gradient at one of them says little, and an attack that follows it gets nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor import device, guard, losses, seed
from firedoor.diagnostics.outcomes import ids_of, known
from firedoor.diagnostics.silent_success import batches
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Split, Symptom
from firedoor.threat import Linf

__all__ = ["UnstableLoss"]


@dataclass(frozen=True)
class UnstableLoss:
    """B6: how much the cross-entropy changes from an image to its neighbours: mean of |L(x) - L(x + r)| / (|L(x)| + 1).

    r is uniform in +-`radius`/2 per pixel, cut with the pixel box, in `directions` draws; each term is at most 1, and 1 where an
    answer is not finite. The mean is over directions, then over the images that the model gets right; the same with |L| alone below
    stands in the text, which is large wherever L is near 0. fail: over `most`. A model that draws at random answers each neighbour in
    a draw of its own, as it does to an attack. The number of directions and the radius are those of the authors' code, which divides
    by |L| alone; the + 1 and the cap on each term are choices of this project, and so is `most`.
    Errors: SpecError for a field out of range.

    Family: attack health.
    Reference: Pintor et al. 2022 (unstable predictions), arXiv:2106.09947.
    """

    directions: int = 100
    radius: float = 8 / 255
    most: float = 0.1

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise SpecError(f"UnstableLoss: directions must be 1 or more, got {self.directions}. Try 100.")
        if not 0 < self.radius <= 1:
            raise SpecError(f"UnstableLoss: radius must be above 0 and at most 1, got {self.radius}. Try 8/255.")
        if not (math.isfinite(self.most) and 0 < self.most < 1):
            raise SpecError(f"UnstableLoss: most must be above 0 and below 1, got {self.most}. Try 0.1.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B6", "unstable loss", "cap", "not_run", "the model gets no image right, so there is no loss to raise")
        kept = known(model, split)
        if not len(kept):
            return sign
        per_image, bare = torch.cat([self._changes(model, batch) for batch in batches(kept)], dim=1)
        value = float(per_image.mean())
        fails = value > self.most
        measured = f"mean relative change {value:.3f} between neighbours, {float(bare.mean()):.3f} with |L| alone below ({len(kept)} images)"
        text = f"noisy loss, average gradients: {measured}" if fails else measured
        ids = ids_of(kept, per_image > self.most)
        return replace(
            sign, status="fail" if fails else "pass", text=text, value=value, threshold=self.most, n=len(kept), examples=ids
        )

    def passes(self, n: int) -> int:
        """Two answers to the image, and one to each neighbour."""
        return n * (2 + self.directions)

    def _changes(self, model: Classifier, batch: Split) -> Tensor:
        """(2, n): the mean change of each image, over |L| + 1 and over |L|."""
        sums = torch.zeros(2, len(batch))
        with guard.no_side_effects(model), torch.no_grad(), seed.streams(0, batch.ids, purpose="B6"):
            here = _loss(model, batch.x, batch.y)
            below = torch.stack((here.abs() + 1, here.abs()))
            for _ in range(self.directions):
                change = (_loss(model, Linf(self.radius / 2).start(batch.x), batch.y) - here).abs()
                ratio = torch.where(change > 0, change / below, change)  # 0 / 0 is no change
                sums += torch.where(torch.isfinite(change), ratio.minimum(torch.ones(())), 1.0)
        return sums / self.directions


def _loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return losses.cross_entropy(model(x.to(device.current())).cpu().float(), y)
