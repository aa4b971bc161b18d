"""Robust distillation in which the teacher's soft answers take the place of the labels everywhere, in the attack too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor.defences.losses.ascent import ascend, check_ascent, nearby
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import kl
from firedoor.protocols import Batch, LossFn, Model, Split, Store
from firedoor.threat import Threat

__all__ = ["RSLAD"]


@dataclass(frozen=True)
class RSLAD:
    """alpha KL(te(x) || p(x')) + (1 - alpha) KL(te(x) || p(x)), where x' maximises the first from x + .001 N(0, 1).

    Robust soft label adversarial distillation. Labels are not used. te is the teacher's softmax and p the student's. Costs steps + 2
    passes and a forward pass of the teacher; a term of weight 0 is not forwarded. alpha 0 is Distillation at temperature 1.
    `step_size` None means eps / 4. Made for a teacher that is robust itself.
    Errors: SpecError for a field out of range.

    Family: distillation. Year: 2021.
    Reference: Zi et al. 2021, arXiv:2108.07969.
    """

    teacher: Model
    threat: Threat
    steps: int = 10
    step_size: float | None = None
    alpha: float = 5 / 6
    inner_mode: Mode = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"RSLAD: alpha must be in [0, 1], got {self.alpha}. It is the share of x'; try 5/6.")
        check_ascent("RSLAD", self.threat, self.steps, self.step_size, self.inner_mode)

    def start(self, store: Store, split: Split) -> LossFn:
        """Load the teacher, training it first if the store does not have it."""
        teacher = self.teacher.load(store)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                taught = teacher(batch.x)
            if self.alpha == 0:
                return kl(module(batch.x), taught).mean()
            attacked = kl(module(self._craft(module, batch, taught)), taught).mean()
            if self.alpha == 1:
                return attacked
            return self.alpha * attacked + (1 - self.alpha) * kl(module(batch.x), taught).mean()

        return loss

    def _craft(self, module: nn.Module, batch: Batch, taught: Tensor) -> Tensor:
        with frozen(module, batch, self.inner_mode) as classifier:
            start = nearby(self.threat, batch.x)
            return ascend(lambda x: kl(classifier(x), taught), start, batch.x, self.threat, self.steps, self.step_size)
