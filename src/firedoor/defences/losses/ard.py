"""A small network learns from a robust teacher: under attack, it is to answer what the teacher answers without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor.defences.losses.ascent import ascend, check_ascent
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy, kl
from firedoor.protocols import Batch, LossFn, Model, Split, Store
from firedoor.threat import Threat

__all__ = ["ARD"]


@dataclass(frozen=True)
class ARD:
    """alpha T^2 KL(te_T(x) || p_T(x')) + (1 - alpha) CE(f(x), y); te and p are softmaxes of teacher and student, _T at temperature T.

    Adversarially robust distillation. x' raises the student's cross-entropy from a uniform point of the ball. Costs steps + 1 passes
    and a forward pass of the teacher; steps + 2 where alpha < 1. `step_size` None means eps / 4. alpha 0 is plain training.
    Made for a teacher that is robust itself.
    Errors: SpecError for a field out of range.

    Family: distillation. Year: 2020.
    Reference: Goldblum et al. 2020, arXiv:1905.09747.
    """

    teacher: Model
    threat: Threat
    steps: int = 10
    step_size: float | None = None
    alpha: float = 1.0
    temperature: float = 30.0
    inner_mode: Mode = "train"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"ARD: alpha must be in [0, 1], got {self.alpha}. It is the teacher's share; try 1.")
        if not self.temperature > 0:
            raise SpecError(f"ARD: temperature must be positive, got {self.temperature}. Try 30.")
        check_ascent("ARD", self.threat, self.steps, self.step_size, self.inner_mode)

    def start(self, store: Store, split: Split) -> LossFn:
        """Load the teacher, training it first if the store does not have it."""
        teacher, hot = self.teacher.load(store), self.temperature

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            if self.alpha == 0:
                return cross_entropy(module(batch.x), batch.y).mean()
            x_adv = self._craft(module, batch)
            with torch.no_grad():
                taught = teacher(batch.x) / hot
            learned = hot**2 * kl(module(x_adv) / hot, taught).mean()
            if self.alpha == 1:
                return learned
            return self.alpha * learned + (1 - self.alpha) * cross_entropy(module(batch.x), batch.y).mean()

        return loss

    def _craft(self, module: nn.Module, batch: Batch) -> Tensor:
        with frozen(module, batch, self.inner_mode) as classifier:
            start = self.threat.start(batch.x)
            return ascend(lambda x: cross_entropy(classifier(x), batch.y), start, batch.x, self.threat, self.steps, self.step_size)
