"""Adversarial training for the price of plain training: one backward pass gives the gradient of the weights and that of the input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store
from firedoor.threat import Threat

__all__ = ["Free"]


@dataclass(frozen=True)
class Free:
    """Cross-entropy of x + delta. The backward pass that trains the weights also moves delta one step up the loss.

    To be fitted with `replays` m > 1, 8 in the paper, and 1/m of the epochs: each replay of a batch is one step of the attack and one
    of the weights. delta begins at 0 and goes on to the next batch, row by row; a shorter last batch has the first rows. `step_size`
    None means eps. One pass per replay. Fit refuses it with `accumulate` or several processes: parts of a batch would share one delta.
    Errors: SpecError for a step_size below 0 or a targeted threat.

    Family: adversarial training. Year: 2019.
    Reference: Shafahi et al. 2019, Alg. 1, arXiv:1904.12843.
    """

    threat: Threat
    step_size: float | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0 <= self.step_size < math.inf:
            raise SpecError(f"Free: step_size must be 0 or more and finite, got {self.step_size}. Leave it out for eps.")
        if self.threat.targeted:
            raise SpecError("Free: the threat must be untargeted, got targeted=True. Remove it.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load. A checkpoint of the training holds delta."""
        return _Carried(self.threat, self.threat.eps if self.step_size is None else self.step_size)


class _Carried:
    """The loss, with the delta of the batch before."""

    whole_batches: ClassVar[bool] = True

    def __init__(self, threat: Threat, step_size: float) -> None:
        self.threat, self.step_size = threat, step_size
        self.delta: Tensor | None = None

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        x, n = batch.x.detach(), len(batch.x)
        delta = self._rows(x)
        x_adv = self.threat.project(x + delta[:n], x).detach().requires_grad_()

        def move(gradient: Tensor) -> None:
            up = gradient.detach().nan_to_num(0.0)  # an overflow of half precision, which skips the step of the weights too
            moved = self.threat.step(x_adv.detach(), x, up, self.step_size) if self.step_size else x_adv.detach()
            self.delta = torch.cat([moved - x, delta[n:]])

        x_adv.register_hook(move)  # type: ignore[no-untyped-call]
        return cross_entropy(module(x_adv), batch.y).mean()

    def _rows(self, x: Tensor) -> Tensor:
        """delta (m, *shape) of m >= n rows, those that no batch has had yet 0."""
        if self.delta is None:
            return torch.zeros_like(x)
        delta = self.delta.to(x)
        return torch.cat([delta, torch.zeros_like(x[len(delta) :])]) if len(delta) < len(x) else delta

    def state(self) -> dict[str, Tensor]:
        """What the next batch depends on."""
        return {} if self.delta is None else {"delta": self.delta}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.delta = state.get("delta")
