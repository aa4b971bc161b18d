"""The multilayer perceptron: the only network here that takes flat inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from firedoor.architectures.activations import Activation, activate, check_activation
from firedoor.architectures.normalise import Normalise
from firedoor.architectures.requirements import check_dropout, check_sizes
from firedoor.errors import SpecError

__all__ = ["MLP"]


@dataclass(frozen=True)
class MLP:
    """Fully connected layers: `depth` hidden ones of `width` units; with none, a linear model.

    Any input shape, flat or image. Errors: SpecError for a field out of range.

    Family: fully connected. Year: 1986.
    Reference: Rumelhart et al. 1986, doi:10.1038/323533a0.
    """

    width: int = 128
    depth: int = 2
    activation: Activation = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes("MLP", {"width": self.width})
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 0:
            raise SpecError(f"MLP: depth must be a whole number, 0 or more, got {self.depth!r}. Use 0 for a linear model.")
        check_activation("MLP", self.activation)
        check_dropout("MLP", self.dropout)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Pixels (n, *shape) to logits (n, classes); initial weights come from torch's generator."""
        layers: list[nn.Module] = [Normalise(), nn.Flatten()]
        size = math.prod(shape)
        for _ in range(self.depth):
            layers += [nn.Linear(size, self.width), activate(self.activation), nn.Dropout(self.dropout)]
            size = self.width
        return nn.Sequential(*layers, nn.Linear(size, classes))
