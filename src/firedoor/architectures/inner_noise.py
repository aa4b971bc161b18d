"""A network with noise inside: no two answers come from the same function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from firedoor import seed
from firedoor.errors import ModelRefused, SpecError
from firedoor.protocols import Architecture

__all__ = ["InnerNoise"]


@dataclass(frozen=True)
class InnerNoise:
    """Gaussian noise before each convolution of `architecture`, in training and at inference; before each linear layer if it has none.

    `first`, `inner`: the deviation before the first layer and before the others, in units of what the layer gets. Our networks
    divide pixels by 0.25 first, so `first` 0.2 is 0.05 on the pixel scale. InnerNoise(a, 0, 0) is `a`. At inference the noise is
    keyed by example; in training it comes from the generator that dropout draws from. A ViT and a Mixer have one convolution, that of
    their patches. The paper answers with the mean of many draws: see Vote.
    Errors: SpecError for a negative deviation; ModelRefused, when built, without convolutions and linear layers.

    Family: randomisation. Year: 2018.
    Reference: Liu et al. 2018, arXiv:1712.00673.
    """

    architecture: Architecture
    first: float = 0.2
    inner: float = 0.1

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("first", self.first), ("inner", self.inner)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise SpecError(f"InnerNoise: {name} must be 0 or more and finite, got {value!r}. Try 0.2 first and 0.1 inside.")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network with the same initial weights, and noise in it."""
        module = self.architecture.build(shape, classes)
        layers = list(_places(module, nn.Conv2d)) or list(_places(module, nn.Linear))
        if not layers:
            raise ModelRefused(
                f"InnerNoise needs a network with convolutions or linear layers inside, got {type(module).__name__} without. "
                "Use another architecture."
            )
        first = layers[0].layer
        noisy: dict[int, nn.Module] = {}  # a layer that is used in two places stays one layer
        for parent, name, layer in layers:
            sigma = self.first if layer is first else self.inner
            noisy.setdefault(id(layer), _Noisy(layer, sigma) if sigma else layer)
            setattr(parent, name, noisy[id(layer)])
        return module


class _Noisy(nn.Module):
    def __init__(self, layer: nn.Module, sigma: float) -> None:
        super().__init__()
        self.layer = layer
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        noise = seed.normal_as_dropout(x, self.sigma) if self.training else seed.normal(x, self.sigma)
        out: Tensor = self.layer(x + noise)
        return out


class _Place(NamedTuple):
    parent: nn.Module
    name: str
    layer: nn.Module


def _places(module: nn.Module, kind: type[nn.Module]) -> Iterator[_Place]:
    """Every place that holds a layer of this type, in the order in which the network lists them."""
    for name, child in module._modules.items():
        if isinstance(child, kind):
            yield _Place(module, name, child)
        elif child is not None:
            yield from _places(child, kind)
