"""An attack that visits a point which fools the model, and hands back one that does not, is weaker than it looks.

What other signs share lives here too: an attack overheard while it runs, and which points are inside its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firedoor import device, guard, losses, seed
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import BATCH, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Attack, Classifier, Returned, Split, Symptom
from firedoor.threat import FLOAT_SLACK, Threat

__all__ = ["Hear", "SilentSuccess", "as_stored", "batches", "inside", "is_8bit", "overheard"]

Hear = Callable[[Tensor, Tensor], None]
"""(x (m, *shape), logits (m, k)) of one query of the whole model, both detached and on the CPU."""


@dataclass(frozen=True)
class SilentSuccess:
    """B4: the share of correctly classified images on which the attack visited a point that fools the model and returned another.

    Visited points are those asked about for the whole batch and inside the budget. The best of each image is judged as the returned
    one is: after rounding, in `draws` draws of a random model. A success is lost when the visited point fools in every draw and the
    returned one in none. fail: more than `share`, by default any image. For the model attacked only: who transfers must not look at
    the target. not_run: no image is known, or the attack asks about no such point.
    Errors: SpecError for the fields and for a targeted attack; BudgetError if the attack leaves its budget.

    Family: attack health.
    Reference: Pintor et al. 2022 (silent success), arXiv:2106.09947.
    """

    attack: Attack
    share: float = 0.0
    draws: int = 3

    def __post_init__(self) -> None:
        need_attacks("SilentSuccess: attack", (self.attack,))
        if not 0 <= self.share < 1:
            raise SpecError(f"SilentSuccess: share must be in [0, 1), got {self.share}. Try 0: any image.")
        if self.draws < 1:
            raise SpecError(f"SilentSuccess: draws must be 1 or more, got {self.draws}. Try 3.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B4", "silent success", "cap", "not_run", "the model gets no image right, so nothing can be broken")
        kept = known(model, split)
        n, asked, found = len(kept), 0, []
        if not n:
            return sign
        for batch in batches(kept):
            visited = _Visited(batch, self.attack.threat)
            x_adv = overheard(model, self.attack, batch, "B4", visited.hear)
            asked += visited.asked
            found.append(self._fools(model, visited.x, batch).all(0) & ~self._fools(model, x_adv, batch).any(0))
        if not asked:
            return replace(sign, text="the attack never asks about a whole batch of points inside its budget", n=n)
        lost = torch.cat(found)
        k = int(lost.sum())
        rate = clopper_pearson(k, n)
        fails = k > self.share * n
        better = (
            "the iterate of largest margin" if self.attack.semantics.returned is Returned.BEST_LOSS else "the best-loss iterate"
        )
        text = f"found and lost on {k} of {n} images" + (f": keep {better}" if fails else "")
        status = "fail" if fails else "pass"
        return replace(
            sign,
            status=status,
            text=text,
            value=rate.value,
            threshold=self.share,
            n=n,
            low=rate.low,
            high=rate.high,
            examples=ids_of(kept, lost),
        )

    def passes(self, n: int) -> int:
        """One clean answer, the attack, and the draws of two points."""
        return n * (1 + passes_of(self.attack) + 2 * self.draws)

    def _fools(self, model: Classifier, x_adv: Tensor, batch: Split) -> Tensor:
        """(draws, n) true where the model's label for x_adv as stored is not y."""
        seen = as_stored(x_adv, batch.x, self.attack.threat)
        with guard.no_side_effects(model):
            label = torch.stack([predict(model, seen, batch.ids, 0, draw) for draw in range(1, self.draws + 1)])
        return (label != batch.y) & (label >= 0)


def batches(split: Split) -> Iterator[Split]:
    """The split as attacks are given it."""
    for i in range(0, len(split), BATCH):
        yield split[slice(i, i + BATCH)]


def overheard(model: Classifier, attack: Attack, batch: Split, purpose: str, hear: Hear) -> Tensor:
    """x_adv (n, *shape) on the CPU just as the attack returns it; `hear` is told of each query of the whole model."""
    with guard.no_side_effects(model), seed.streams(0, batch.ids, purpose=purpose), _with_ear(model, hear) as asked:
        return attack(asked, batch.x.to(device.current()), batch.y.to(device.current())).detach().cpu()


def inside(threat: Threat, x_adv: Tensor, x: Tensor) -> Tensor:
    """(n,) true where the point is finite and within ball and box, by the measure of `Threat.check`."""
    flat = x_adv.flatten(1)
    near = threat.size(x_adv - x) <= threat.eps * (1 + FLOAT_SLACK) + FLOAT_SLACK
    return near & (flat >= 0).all(1) & (flat <= 1).all(1)


def is_8bit(x: Tensor) -> bool:
    """Whether every pixel is a whole number / 255."""
    return bool(((255 * x).round() / 255 == x).all())


def as_stored(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """x_adv as a target sees it: in 8 bits where all of x is. Errors: BudgetError if it is outside the budget."""
    if is_8bit(x):
        return threat.to_8bit(x_adv, x).float() / 255
    threat.check(x_adv, x)
    return x_adv


class _Visited:
    """The point with the largest margin that each example visited; its own x where none fooled. `asked`: queries that counted."""

    def __init__(self, batch: Split, threat: Threat) -> None:
        self.batch, self.threat, self.x, self.asked = batch, threat, batch.x.clone(), 0
        self.margin = torch.zeros(len(batch))

    def hear(self, x: Tensor, logits: Tensor) -> None:
        n = len(self.batch)
        if len(x) % n or x.shape[1:] != self.batch.x.shape[1:]:
            return
        points, answers = (
            x.view(-1, n, *x.shape[1:]),
            logits.reshape(-1, n, logits.shape[1]),
        )  # m n rows are m points of each example
        for point, answer in zip(points.unbind(0), answers.unbind(0), strict=True):
            fits = inside(self.threat, point, self.batch.x)
            margin = losses.margin(answer, self.batch.y)
            better = fits & torch.isfinite(answer).all(1) & (margin > self.margin)
            self.margin = torch.where(better, margin, self.margin)
            self.x[better] = point[better].to(self.x.dtype)
            self.asked += int(fits.any())


@contextmanager
def _with_ear(model: Classifier, hear: Hear) -> Iterator[Classifier]:
    """The model, with `hear` told of each of its answers. The hooks are gone before the guard looks."""

    asked_at: list[Tensor] = []

    def enter(x: Tensor) -> None:
        asked_at.append(x.detach().cpu().clone())  # before the model runs: some write to their input

    def leave(logits: Tensor) -> None:
        hear(asked_at.pop(), logits.detach().cpu())

    if isinstance(model, nn.Module):  # hooks and no shell: an attack that looks inside finds the layers where they were
        before = model.register_forward_pre_hook(lambda _module, inputs: enter(inputs[0]))
        after = model.register_forward_hook(lambda _module, _inputs, logits: leave(logits))
        try:
            yield model
        finally:
            before.remove()
            after.remove()
        return

    def asked(x: Tensor) -> Tensor:
        enter(x)
        logits = model(x)
        leave(logits)
        return logits

    yield asked
