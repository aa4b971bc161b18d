"""A linear network on which the best change in ball and box is known in every norm, and with it the distance to the boundary.

The formulas follow from the definitions of the norms, on purpose not from those of threat.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from firedoor import losses
from firedoor.contracts import victims
from firedoor.contracts.subject import Subject

__all__ = ["DISTANCE", "VECTOR", "LinearWorld"]

DISTANCE = 0.05  # to the boundary, in L-inf, of every example
VECTOR = (64,)
HALVINGS = 60


class LinearWorld:
    """Two classes (and others far behind), inputs away from the edge of the box, and what each can lose in one norm.

    network: classifier. x, y: inputs and labels that it gets right, all by the same `margin`. aim: y as the attack wants it.
    distance: (n,) to the boundary, in the norm.
    """

    def __init__(self, s: Subject, norm: str, shape: tuple[int, ...] = victims.SHAPE) -> None:
        n = 8 if norm in ("Linf", "L2") else 24  # few pixels move: only a mean over many examples tells from noise
        w = victims.normals(*shape, key=2) if s.exact else victims.gentle(shape)
        self.norm, self.margin = norm, DISTANCE * float(w.abs().sum())
        self.x, self.y = victims.at_margin(w, n, self.margin)
        self.aim = 1 - self.y if s.aimed else self.y
        self.network: nn.Module = victims.centred(w, s.few, deep=len(shape) == 3)
        falls = torch.where(self.y[:, None] == 1, -w.flatten(), w.flatten())
        self._weight = falls.abs()
        self._room = torch.where(falls > 0, 1 - self.x.flatten(1), self.x.flatten(1))
        self._channels = shape[0] if len(shape) == 3 else 1
        self.distance = self._distance()

    def most(self, eps: float | Tensor) -> Tensor:
        """(n,) by how much the margin of y falls at most within eps, a number or (n,)."""
        size = torch.as_tensor(eps, dtype=self._room.dtype).expand(len(self._room))[:, None]
        if self.norm == "Linf":
            return (self._weight * self._room.minimum(size)).sum(1)
        if self.norm == "L2":
            return (self._weight * self._along(size)).sum(1)
        if self.norm == "L1":
            return (self._weight * self._heaviest_first(size)).sum(1)
        place = (self._weight * self._room).view(len(self._room), self._channels, -1).sum(1)
        counted = torch.arange(place.shape[1]) < size
        return (place.sort(dim=1, descending=True).values * counted).sum(1)

    def fall(self, x_adv: Tensor, eps: float) -> Tensor:
        """(n,) by how much the margin of y fell, as a share of the most that eps allows."""
        with torch.no_grad():
            before, after = (-losses.margin(self.network(x), self.y) for x in (self.x, x_adv))
        return (before - after) / self.most(eps)

    def noise(self, eps: float) -> float:
        """The spread of that share for signs drawn at random: of one example, or of the mean where few pixels move."""
        moved = self._weight * self._room.minimum(torch.tensor(eps))
        if self.norm == "Linf":
            return float((moved.square().sum(1).sqrt() / moved.sum(1)).mean())
        if self.norm == "L2":
            return 1 / math.sqrt(self._room.shape[1])
        filled = eps if self.norm == "L0" else eps / float(self._room.mean())
        return 1 / math.sqrt(len(self._room) * max(filled, 1))

    def below(self, share: float) -> float:
        """A budget of at most that share of every distance; a whole number of pixels, at least one, in L0."""
        eps = share * float(self.distance.min())
        return max(math.floor(eps), 1) if self.norm == "L0" else eps

    def beyond(self, times: float) -> float:
        """A budget of at least that many times every distance."""
        eps = times * float(self.distance.max())
        return math.ceil(eps) if self.norm == "L0" else eps

    def _distance(self) -> Tensor:
        if self.norm == "L0":
            counts = torch.arange(1, self._room.shape[1] // self._channels + 1)
            enough = torch.stack([self.most(float(k)) >= self.margin for k in counts], 1)
            return counts[enough.int().argmax(1)].to(self._room.dtype)
        low, high = torch.zeros(len(self._room), dtype=self._room.dtype), self._room.sum(1)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            short = self.most(middle) < self.margin
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return high

    def _along(self, size: Tensor) -> Tensor:
        """L2: pixel i moves by min(t weight_i, room_i), with the t that spends `size` (n, 1)."""
        low, high = torch.zeros_like(size), (self._room / self._weight).amax(1, keepdim=True)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            over = (middle * self._weight).minimum(self._room).square().sum(1, keepdim=True).sqrt() > size
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        return (low * self._weight).minimum(self._room)

    def _heaviest_first(self, size: Tensor) -> Tensor:
        """L1: each pixel is filled before the next lighter one."""
        order = self._weight.argsort(dim=1, descending=True)
        room = self._room.gather(1, order)
        spent = room.minimum((size - room.cumsum(1) + room).clamp_min(0))
        return torch.zeros_like(room).scatter(1, order, spent)
