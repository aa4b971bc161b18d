"""One-step adversarial training that was left to itself: it learns to beat one step, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from firedoor.protocols import Architecture

__all__ = ["OverfitFast"]


@dataclass(frozen=True)
class OverfitFast:
    """A plain network, to be fitted with Fast(threat, step=2, guard=False) for many epochs, until it overfits catastrophically.

    Its gradient is no lie: more steps along it break the model. Only the figure of a one-step attack is false. So it relaxes to
    itself, and a study does not attack it twice.

    Family: gradient masking. Year: 2020.
    Reference: Wong et al. 2020, sec. 5, arXiv:2001.03994.
    """

    honest: ClassVar[bool] = True
    broken_by: ClassVar[str] = (
        "more steps: PGD-50. Wong et al. 2020, sec. 5, arXiv:2001.03994; Andriushchenko and Flammarion 2020, arXiv:2007.02617"
    )

    def build(self, architecture: Architecture, shape: tuple[int, ...], classes: int) -> nn.Module:
        return architecture.build(shape, classes)

    def relax(self, module: nn.Module) -> nn.Module:
        """The network itself."""
        return module
