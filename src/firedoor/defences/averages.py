"""Averages of the weights that a training passes through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["EqualAverage", "MovingAverage", "state_of"]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class EqualAverage:
    """The mean, in double precision, of all states that were added (Izmailov et al. 2018, arXiv:1803.05407)."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, module: nn.Module) -> None:
        """Counts the present state."""
        self.count += 1
        for name, value in module.state_dict().items():
            now = value.detach().double() if value.is_floating_point() else value.detach().clone()
            self.sums[name] = self.sums[name] + now if value.is_floating_point() and name in self.sums else now

    def state(self, like: nn.Module) -> dict[str, Tensor]:
        """The mean, in the types of `like`; what is no real number is the last one."""
        return {k: (self.sums[k] / self.count).to(v.dtype) if v.is_floating_point() else self.sums[k] for k, v in _items(like)}


class MovingAverage:
    """Each state enters with weight 1 - `decay`, after each step (Polyak and Juditsky 1992, doi:10.1137/0330046, in its exponential form).

    The first states weigh more: decay is at most (1 + steps) / (10 + steps).
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.sums: dict[str, Tensor] = {}

    def add(self, module: nn.Module) -> None:
        """Counts the present state."""
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in module.state_dict().items():
            if name in self.sums and value.is_floating_point():
                self.sums[name].lerp_(value.detach(), 1 - keep)
            else:
                self.sums[name] = value.detach().clone()

    def state(self, like: nn.Module) -> dict[str, Tensor]:
        """The average; what is no real number is the last one."""
        return {k: self.sums[k].to(v.dtype) for k, v in _items(like)}


def _items(module: nn.Module) -> list[tuple[str, Tensor]]:
    with torch.no_grad():
        return list(module.state_dict().items())
