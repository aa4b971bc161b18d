"""A model that answers NaN cannot be judged: the largest of NaN scores is class 0, which may look right or wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import ids_of, passes_of
from firedoor.diagnostics.silent_success import batches, overheard
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Attack, Classifier, Split, Symptom
from firedoor.threat import Linf, Threat

__all__ = ["Finite"]

PLACES = ("clean", "on the attack's way", "in the ball", "in the pixel box")


@dataclass(frozen=True)
class Finite:
    """B2: images around which the attack's output, or an answer of the model, is not finite. fail: any.

    Asked are the image, every point of the pixel box that `attack` asks about, what it returns, and `points` corners and `points`
    uniform points of both the ball and the whole box, and a black and a white image. An attack steers away from NaN, since it is
    never the best loss, so what it returns says too little. Such an answer is never a success.
    Errors: SpecError for the fields and for a targeted attack.

    Family: attack health.
    Reference: Athalye et al. 2018, sec. 3 (numeric instability), arXiv:1802.00420.
    """

    attack: Attack
    points: int = 8

    def __post_init__(self) -> None:
        need_attacks("Finite: attack", (self.attack,))
        if self.points < 1:
            raise SpecError(f"Finite: points must be 1 or more, got {self.points}. Try 8.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over all images of `split`."""
        n = len(split)
        if not n:
            return Symptom("B2", "finite", "void", "not_run", "there is no image to ask about")
        bad = torch.cat([self._bad(model, batch) for batch in batches(split)], dim=1)
        any_bad = bad.any(0)
        k = int(any_bad.sum())
        rate = clopper_pearson(k, n)
        where = ", ".join(f"{place} {int(row.sum())}" for place, row in zip(PLACES, bad, strict=True))
        text = (
            f"{k} of {n} images give NaN or infinite outputs ({where}): never a success"
            if k
            else f"every output is finite ({n} images)"
        )
        return Symptom(
            "B2", "finite", "void", "fail" if k else "pass", text, rate.value, 0.0, n, rate.low, rate.high, ids_of(split, any_bad)
        )

    def passes(self, n: int) -> int:
        """The clean answer, the attack and an answer to it, the points, and the two plain images that each batch is asked about."""
        return n * (4 + passes_of(self.attack) + 4 * self.points)

    def _bad(self, model: Classifier, batch: Split) -> Tensor:
        """(places, n) true where something is not finite."""
        n, way = len(batch), torch.zeros(len(batch), dtype=torch.bool)

        def hear(x: Tensor, logits: Tensor) -> None:
            nonlocal way
            wrong = _not_finite(logits) & ((x >= 0) & (x <= 1)).flatten(1).all(1)  # what it asks outside the box is its own affair
            way = way | (wrong.view(-1, n).any(0) if len(x) % n == 0 else wrong.any())

        x_adv = overheard(model, self.attack, batch, "B2", hear)
        way |= _not_finite(x_adv)
        with guard.no_side_effects(model), torch.no_grad(), seed.streams(0, batch.ids, purpose="B2 points"):
            clean = _asked(model, batch.x)
            way |= _asked(model, torch.where(torch.isfinite(x_adv), x_adv, batch.x))
            ball = _asked_around(model, batch.x, self.attack.threat, self.points)
            box = _asked_around(model, batch.x, Linf(1.0), self.points)
            for level in (0.0, 1.0):
                box |= _asked(model, torch.full_like(batch.x, level))
        return torch.stack((clean, way, ball, box))


def _asked_around(model: Classifier, x: Tensor, threat: Threat | Linf, points: int) -> Tensor:
    """(n,) true where the answer to some corner or uniform point around x is not finite."""
    bad = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(points):
        corner = threat.step(x, x, seed.normal(x), threat.eps)
        bad |= _asked(model, corner) | _asked(model, threat.start(x))
    return bad


def _asked(model: Classifier, x: Tensor) -> Tensor:
    return _not_finite(model(x.to(device.current())).cpu())


def _not_finite(values: Tensor) -> Tensor:
    """(n,) true where any number of the row is NaN or infinite."""
    return ~torch.isfinite(values.flatten(1)).all(1)
