"""Several networks as one architecture, so that one training run can train them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from firedoor.errors import SpecError
from firedoor.members import Members
from firedoor.protocols import Architecture

__all__ = ["Committee"]


@dataclass(frozen=True)
class Committee:
    """Networks that answer together: the log of the members' mean probability, or the mean of their logits.

    Members are built one after the other, so two of the same architecture begin with different weights. Train it with a loss that
    looks at `.members`, such as JointCrossEntropy, GAL or DVERGE; any other loss trains the combined answer. An ensemble of models
    that are trained apart is `Ensemble`. Errors: SpecError without members, or for an unknown `combine`.

    Family: ensemble. Year: 1990.
    Reference: Hansen & Salamon 1990, doi:10.1109/34.58871.
    """

    members: tuple[Architecture, ...]
    combine: Literal["logits", "probabilities"] = "probabilities"

    def __post_init__(self) -> None:
        if not self.members:
            raise SpecError("Committee needs at least one member, got none. Name architectures in `members`.")
        if self.combine not in ("logits", "probabilities"):
            raise SpecError(f"Committee: combine must be 'logits' or 'probabilities', got {self.combine!r}. Choose one.")

    @property
    def stochastic(self) -> bool:
        """Whether any member draws at each query."""
        return any(bool(getattr(m, "stochastic", False)) for m in self.members)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Pixels (n, *shape) to logits (n, classes), with `.members`; initial weights come from torch's generator."""
        return Members([m.build(shape, classes) for m in self.members], self.combine)
