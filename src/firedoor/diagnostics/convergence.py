"""An attack whose loss still rises when it stops, or never rose at all, has not been run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import ids_of, known, passes_of
from firedoor.diagnostics.silent_success import as_stored, batches, inside, overheard
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Attack, Budget, Classifier, Split, Symptom
from firedoor.threat import Threat

__all__ = ["Convergence"]

LEAST_STEPS = 2  # of one step nothing can be said
FLAT = 1e-6  # of 1 + |loss|: a rise that rounding alone could make
BY_NOISE = 4  # standard deviations: what the best of a hundred noisy answers may gain on the first


@dataclass(frozen=True)
class Convergence:
    """B5: the share of correctly classified images that survive an attack while their loss has not settled.

    The loss is the log-odds against y (cross-entropy before it saturates) at each point that the attack asks about, and at the point
    it returns, scaled to [0,1]. It is not settled where the best so far gains more than `gain` in the last `tail` of the steps, or
    never rose above its start. NaN is never settled, on no image. Answers to one and the same point are averaged; with restarts, the
    best restart of each image counts. A random model is asked `draws` times about the returned point, and a gain counts only beyond
    that noise, so a slower rise goes unseen. An image that is fooled needs no more steps, whatever its loss does.
    fail: more than `share`. not_run: no image is known; one step; a search for the smallest distance; or an attack that mostly asks
    about other points than its own. A fixed step that can cross the ball only once does not settle on a network: a pixel that has to
    turn late has no steps left, and more of them, as much smaller, do not help. Give it larger ones, or use APGD.
    Errors: SpecError for the fields and for a targeted attack; BudgetError if the attack leaves its budget.

    Family: attack health.
    Reference: Pintor et al. 2022 (incomplete optimization), arXiv:2106.09947.
    """

    attack: Attack
    gain: float = 0.01
    tail: float = 0.2
    share: float = 0.05
    draws: int = 5

    def __post_init__(self) -> None:
        need_attacks("Convergence: attack", (self.attack,))
        for name in ("gain", "tail", "share"):
            if not 0 < getattr(self, name) < 1:
                raise SpecError(f"Convergence: {name} must be above 0 and below 1, got {getattr(self, name)}. Leave it out.")
        if self.draws < 2:
            raise SpecError(f"Convergence: draws must be 2 or more, got {self.draws}. Try 5: it takes two to see noise.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B5", "convergence", "cap", "not_run", "the model gets no image right, so nothing can be broken")
        if self.attack.semantics.budget is Budget.MINIMUM:
            return replace(sign, text="the attack seeks the smallest distance: its loss need not rise")
        kept = known(model, split)
        n, found = len(kept), []
        if not n:
            return sign
        for batch in batches(kept):
            trace = _Trace(batch, self.attack.threat)
            x_adv = overheard(model, self.attack, batch, "B5", trace.hear)
            if len(trace.losses) < max(trace.elsewhere, LEAST_STEPS):
                reason = (
                    f"the loss is known at {len(trace.losses)} points of the attack, and {trace.elsewhere} queries were elsewhere"
                )
                return replace(sign, text=reason, n=n)
            with guard.no_side_effects(model):
                last = torch.stack([_asked(model, x_adv, batch, draw) for draw in range(self.draws)])
                label = predict(model, as_stored(x_adv, batch.x, self.attack.threat), batch.ids, 0, 1)
            fooled = (label != batch.y) & (label >= 0)
            losses = torch.cat((trace.best_restart(getattr(self.attack, "restarts", 1)), last.mean(0, keepdim=True)))
            rises, flat, nan = self._unsettled(losses, last.std(0) / math.sqrt(trace.answers_per_point))
            found.append(torch.stack((rises & ~fooled, flat & ~fooled, nan)))
        rising, flat, nan = torch.cat(found, dim=1)
        bad = rising | flat | nan
        k = int(bad.sum())
        rate = clopper_pearson(k, n)
        fails = k > self.share * n
        counts = f"unsettled on {k} of {n} images (rising {int(rising.sum())}, flat {int(flat.sum())}, NaN {int(nan.sum())})"
        text = f"not converged, double the steps: {counts}" if fails else counts
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
            examples=ids_of(kept, bad),
        )

    def passes(self, n: int) -> int:
        """A clean answer, the attack, the label of what it returns, and that point's loss in each draw."""
        return n * (2 + self.draws + passes_of(self.attack))

    def _unsettled(self, losses: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (t, n) in order and their deviation (n,) to three masks (n,): still rising, never rose, not finite."""
        nan = ~torch.isfinite(losses).all(0)
        best = torch.where(torch.isfinite(losses), losses, -torch.inf).cummax(0).values
        settled_by = int((1 - self.tail) * (len(losses) - 1))
        total, late = best[-1] - best[0], best[-1] - best[settled_by]
        chance = BY_NOISE * noise
        flat = total <= FLAT * (1 + best[0].abs()) + chance
        return (late > self.gain * total + chance) & ~flat & ~nan, flat & ~nan, nan


class _Trace:
    """The loss of one batch at each point of the ball that the attack asks about. `elsewhere`: its other queries."""

    def __init__(self, batch: Split, threat: Threat) -> None:
        self.batch, self.threat, self.elsewhere, self.rows = batch, threat, 0, 0
        self.losses: list[Tensor] = []
        self.place: list[Tensor] = []  # (n,) counts the different points that each example was at
        self.x = torch.full_like(batch.x, torch.nan)

    def hear(self, x: Tensor, logits: Tensor) -> None:
        n = len(self.batch)
        copies = len(x) // n
        if (
            len(x) % n
            or x.shape[1:] != self.batch.x.shape[1:]
            or not bool(inside(self.threat, x, _tiled(self.batch.x, copies)).all())
        ):
            self.elsewhere += 1
            return
        self.losses.append(_log_odds(logits, self.batch.y.repeat(copies)).view(copies, n).mean(0))
        self.rows += copies
        moved = (x[:n] != self.x).flatten(1).any(1)
        self.place.append(self.place[-1] + moved if self.place else torch.zeros(n, dtype=torch.int64))
        self.x = x[:n]

    @property
    def answers_per_point(self) -> float:
        """How many answers are behind a loss, on average."""
        return self.rows / float(self.place[-1].float().mean() + 1)

    def best_restart(self, restarts: int) -> Tensor:
        """(t, n): the trace of the restart that got highest, per example; all of it where it cannot be cut into equal parts."""
        losses, place = torch.stack(self.losses), torch.stack(self.place)
        sums, counts = (torch.zeros_like(losses).scatter_add(0, place, v) for v in (losses, torch.ones_like(losses)))
        losses = (sums / counts).gather(0, place)
        if restarts <= 1 or len(losses) % restarts:
            return losses
        parts = losses.view(restarts, -1, losses.shape[1])
        chosen = parts.amax(1).argmax(0)
        return parts[chosen, :, torch.arange(losses.shape[1])].T


def _asked(model: Classifier, x: Tensor, batch: Split, draw: int) -> Tensor:
    """(n,) the loss at x in that draw of a random model."""
    with torch.no_grad(), seed.streams(0, batch.ids, draw=draw + 1, purpose="B5"):
        return _log_odds(model(x.to(device.current())).cpu(), batch.y)


def _log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p) / p) for p = softmax at y, in float64: rises with the cross-entropy, and does not saturate. NaN if not finite."""
    wide = logits.double()
    value = wide.scatter(1, y[:, None], -torch.inf).logsumexp(1) - wide.gather(1, y[:, None])[:, 0]
    return torch.where(torch.isfinite(wide).all(1), value, torch.nan)


def _tiled(x: Tensor, copies: int) -> Tensor:
    return x.repeat(copies, *[1] * (x.dim() - 1))
