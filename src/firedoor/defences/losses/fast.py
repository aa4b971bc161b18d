"""Adversarial training at twice the price of plain training: one step from a random start, with an eye on its collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor import device, seed
from firedoor.defences.losses.ascent import ascend
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store
from firedoor.threat import Threat

__all__ = ["Fast", "Guarded"]

WATCHED = 128  # training examples that the guard looks at, the same ones after each epoch
MOST_LOST = 0.4  # part of their accuracy under attack, before training stops
STEPS = 10  # of that attack, each of eps / 4


@dataclass(frozen=True)
class Fast:
    """Cross-entropy of x', one step of `step` eps along the gradient from a uniform point of the ball, cut with it. Two passes.

    Networks trained so may lose all robustness and still beat one step, within an epoch (catastrophic overfitting) or slowly.
    `guard`: PGD-10 on the same 128 training examples after each epoch; where less than 60 % of the share that stood in the best
    epoch so far stands, the weights and buffers of that epoch are put back and training stops. An epoch that a constant answer
    would equal is no best one. The paper stops at a loss of 20 points on one batch, which a network that never had more than 25
    cannot show, and five steps see half of a slow loss; the price is that of five steps on 256. step 0 trains on uniform noise.
    Errors: SpecError for a negative step or a targeted threat.

    Family: adversarial training. Year: 2020.
    Reference: Wong et al. 2020, arXiv:2001.03994.
    """

    threat: Threat
    step: float = 1.25
    guard: bool = True
    inner_mode: Mode = "train"

    def __post_init__(self) -> None:
        if not 0 <= self.step < math.inf:
            raise SpecError(f"Fast: step must be 0 or more and finite, got {self.step}. It counts in eps; try 1.25.")
        if self.threat.targeted:
            raise SpecError("Fast: the threat must be untargeted, got targeted=True. Remove it.")
        if self.inner_mode not in ("train", "eval"):
            raise SpecError(f"Fast: inner_mode must be 'train' or 'eval', got {self.inner_mode!r}. Choose one.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load; the guard takes its examples from `split`."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            with frozen(module, batch, self.inner_mode) as classifier:
                x_adv = ascend(
                    lambda x: cross_entropy(classifier(x), batch.y),
                    self.threat.start(batch.x),
                    batch.x,
                    self.threat,
                    steps=1,
                    step_size=self.step * self.threat.eps,
                )
            return cross_entropy(module(x_adv), batch.y).mean()

        return Guarded(loss, self.threat, split) if self.guard else loss


class Guarded:
    """The loss, with the weights and buffers of the best epoch so far."""

    def __init__(self, loss: LossFn, threat: Threat, split: Split) -> None:
        rows = torch.from_numpy(seed.order(len(split), 0, "guard"))[:WATCHED]
        self.loss, self.threat = loss, threat
        self.x, self.y = split.x[rows].to(device.current()), split.y[rows].to(device.current())
        self.ids = [split.ids[int(i)] for i in rows]
        self.best = float(self.y.bincount().max()) / len(rows)  # what a constant answer gets under any attack
        self.kept: list[Tensor] = []

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        return self.loss(module, batch)

    def epoch_end(self, module: nn.Module, epoch: int) -> bool:
        """Whether the network has collapsed; if so, it is the best one again."""
        accuracy = self._accuracy(module, epoch)
        state = [*module.parameters(), *module.buffers()]
        if self.kept and accuracy < (1 - MOST_LOST) * self.best:
            with torch.no_grad():
                for now, before in zip(state, self.kept, strict=True):
                    now.copy_(before)
            return True
        if accuracy > self.best:
            self.best, self.kept = accuracy, [t.detach().clone() for t in state]
        return False

    def state(self) -> dict[str, Tensor]:
        """For checkpoints: the best share so far, and the weights and buffers that had it."""
        return {"best": torch.tensor(self.best, dtype=torch.float64), **{f"kept/{i}": t for i, t in enumerate(self.kept)}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Back to a checkpoint."""
        self.best = float(state["best"])
        self.kept = [state[f"kept/{i}"] for i in range(len(state) - 1)]

    def _accuracy(self, module: nn.Module, epoch: int) -> float:
        batch = Batch(self.x, self.y, self.ids, epoch)
        with frozen(module, batch, "eval") as classifier, seed.streams(0, self.ids, purpose="guard"):
            start = self.threat.start(self.x)
            x_adv = ascend(lambda x: cross_entropy(classifier(x), self.y), start, self.x, self.threat, STEPS, self.threat.eps / 4)
            with torch.no_grad():
                return float((classifier(x_adv).argmax(1) == self.y).double().mean())
