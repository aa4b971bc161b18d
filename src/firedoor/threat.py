"""What an attacker may change: balls in four norms, and all the geometry of norms there is.

Sizes are on the [0,1] pixel scale. Nothing else in the project clips, projects or measures a perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from firedoor import seed
from firedoor.errors import BudgetError, DataError, SpecError

__all__ = ["L0", "L1", "L2", "Linf", "Threat", "levels"]

FLOAT_SLACK = 1e-6  # how far float32 arithmetic may overshoot a budget


class Threat(Protocol):
    """A norm ball around x, cut with the pixel box [0,1]."""

    norm: ClassVar[str]
    eps: float
    targeted: bool

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor: ...
    def steepest(self, gradient: Tensor) -> Tensor: ...
    def step(self, x_adv: Tensor, x: Tensor, gradient: Tensor, step_size: float) -> Tensor: ...
    def start(self, x: Tensor) -> Tensor: ...
    def size(self, delta: Tensor) -> Tensor: ...
    def to_8bit(self, x_adv: Tensor, x: Tensor) -> Tensor: ...
    def check(self, x_adv: Tensor, x: Tensor) -> None: ...


@dataclass(frozen=True)
class _Ball:
    eps: float
    targeted: bool = False

    norm: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not math.isfinite(self.eps):
            raise SpecError(f"{type(self).__name__}: eps must be a finite number, got {self.eps!r}. Write 8/255 or 0.03.")
        if self.eps < 0:
            raise SpecError(f"{type(self).__name__}: eps must be 0 or more, got {self.eps}. Use a positive budget.")

    def size(self, delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        raise AssertionError("every norm defines its size")

    def project(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        raise AssertionError("every norm defines its projection")

    def steepest(self, gradient: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        raise AssertionError("every norm defines its steepest direction")

    def step(
        self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"], gradient: Float[Tensor, "n *shape"], step_size: float
    ) -> Float[Tensor, "n *shape"]:
        """One step of that size up the gradient from x_adv, back into the ball and the box."""
        return self.project(x_adv + step_size * self.steepest(gradient), x)

    def check(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> None:
        """Raise BudgetError if any row of x_adv is not finite, leaves the ball or leaves [0,1]."""
        if x_adv.shape != x.shape:
            raise BudgetError(f"x_adv must have the shape of x, {tuple(x.shape)}, got {tuple(x_adv.shape)}. Fix the attack.")
        if len(x) == 0:
            return
        if not bool(torch.isfinite(x_adv).all()):
            raise BudgetError("x_adv holds NaN or infinite pixels. Fix the attack: such an output is no success.")
        largest = float(self.size(x_adv - x).max())
        if largest > self.eps * (1 + FLOAT_SLACK) + FLOAT_SLACK:
            raise BudgetError(f"x_adv has {self.norm} size {largest:.6g}, over the budget {self.eps:.6g}. Project in the attack.")
        if float(x_adv.min()) < 0 or float(x_adv.max()) > 1:
            raise BudgetError(
                f"x_adv must lie in [0,1], got {float(x_adv.min()):.6g} to {float(x_adv.max()):.6g}. Project in the attack."
            )


@dataclass(frozen=True)
class Linf(_Ball):
    """No pixel moves by more than eps.

    Example:
        >>> float(Linf(8 / 255).steepest(torch.tensor([[-3.0]])))
        -1.0

    Family: norm ball. Year: 2015. Reference: Goodfellow et al. 2015, sec. 3, arXiv:1412.6572.
    """

    norm: ClassVar[str] = "Linf"

    def project(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The nearest point of the ball and the box."""
        return torch.minimum(torch.maximum(x_adv, (x - self.eps).clamp_min(0)), (x + self.eps).clamp_max(1))

    def steepest(self, gradient: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The direction of size 1 that raises the objective most: the sign."""
        return gradient.sign()

    def start(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """A uniform point of the ball, cut with the box; keyed per example."""
        return self.project(x + seed.uniform(x, -self.eps, self.eps), x)

    def size(self, delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """The largest change of a pixel, per example."""
        return delta.flatten(1).abs().amax(1)

    def to_8bit(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> UInt8[Tensor, "n *shape"]:
        """The nearest 8-bit image that stays within floor(255 eps) levels of x.

        Errors: BudgetError if x_adv is over budget before rounding; DataError if x is no 8-bit image.
        """
        self.check(x_adv, x)
        clean, limit = levels(x), math.floor(255 * self.eps + 1e-6)
        moved = ((255 * x_adv).round().to(torch.int16) - clean).clamp(-limit, limit)
        return (clean + moved).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class L2(_Ball):
    """The Euclidean length of the change stays within eps.

    Family: norm ball. Year: 2014. Reference: Szegedy et al. 2014, sec. 4, arXiv:1312.6199.
    """

    norm: ClassVar[str] = "L2"

    def project(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The nearest point of ball and box: delta = clip(d / (1 + m), -x, 1 - x) with the least m >= 0 that fits."""
        d = x_adv - x
        top = (self.size(d) / max(self.eps, 1e-30) - 1).clamp_min(0)
        return _project_by_dual(x, self.eps, self.size, lambda m: d / (1 + m), top)

    def steepest(self, gradient: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The unit vector along the gradient; zero where the gradient is zero."""
        scaled = gradient / _rows(gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        return scaled / _rows(torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(1e-12), gradient)

    def start(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """A uniform point of the ball, cut with the box; keyed per example."""
        direction = self.steepest(seed.normal(x))
        radius = self.eps * seed.uniform(x[:, :1].flatten(1)[:, :1], 0, 1) ** (1 / math.prod(x.shape[1:]))
        return self.project(x + _rows(radius[:, 0], x) * direction, x)

    def size(self, delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """Euclidean length, per example."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def to_8bit(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> UInt8[Tensor, "n *shape"]:
        """The nearest 8-bit image; a change that rounding made too long is truncated towards x instead."""
        self.check(x_adv, x)
        return _round_or_truncate(x_adv, x, lambda d: self.size(d) <= 255 * self.eps)


@dataclass(frozen=True)
class L1(_Ball):
    """The summed change of all pixels stays within eps.

    Family: norm ball. Year: 2018. Reference: Chen et al. 2018, sec. 3, arXiv:1709.04114.
    """

    norm: ClassVar[str] = "L1"
    version: ClassVar[int] = 2  # since steps see the box

    def project(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The nearest point of ball and box: delta = clip(shrink(d, m), -x, 1 - x) with the least m >= 0 that fits."""
        d = x_adv - x
        top = d.flatten(1).abs().amax(1) if d[0:1].numel() else d.new_zeros(len(d))
        return _project_by_dual(x, self.eps, self.size, lambda m: d.sign() * (d.abs() - m).clamp_min(0), top)

    def steepest(self, gradient: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The whole step on the pixel with the largest gradient."""
        flat = gradient.flatten(1)
        where = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, where, flat.gather(1, where).sign()).view_as(gradient)

    def step(
        self,
        x_adv: Float[Tensor, "n *shape"],
        x: Float[Tensor, "n *shape"],
        gradient: Float[Tensor, "n *shape"],
        step_size: float | Tensor,
    ) -> Float[Tensor, "n *shape"]:
        """What gains most within `step_size` (of each example, if a tensor) and in the box: pixels are filled in turn, the steepest first.

        What then lies beyond eps is taken from the pixels whose change gains least: steps of any size end at the optimum of a linear
        function. Reference: Croce & Hein 2021 (steepest descent in ball and box), arXiv:2103.01208.
        """
        g, at = gradient.flatten(1), x_adv.flatten(1)
        room = torch.where(g > 0, 1 - at, at) * (g != 0)
        length = step_size.view(-1, 1) if isinstance(step_size, Tensor) else step_size
        d = at + g.sign() * _in_turn(g.abs(), room, length) - x.flatten(1)
        beyond = (d.abs().sum(1, keepdim=True) - self.eps).clamp_min(0)
        d = d - d.sign() * _in_turn(-g * d.sign(), d.abs(), beyond)
        return self.project(x + d.view_as(x), x)

    def sparse(self, gradient: Float[Tensor, "n *shape"], count: Float[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        """The direction of size 1 that moves the `count` steepest pixels of each example alike; fewer where fewer have a gradient."""
        flat = gradient.flatten(1)
        rank = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        moved = flat.sign() * (rank < count[:, None])
        return (moved / moved.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)

    def start(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """A uniform point of the ball (exponential changes, scaled), cut with the box; keyed per example."""
        change = -seed.uniform(x, 1e-7, 1).log() * seed.uniform(x, -1, 1).sign()
        radius = self.eps * seed.uniform(x[:, :1].flatten(1)[:, :1], 0, 1)[:, 0] ** (1 / math.prod(x.shape[1:]))
        return self.project(x + change * _rows(radius / self.size(change).clamp_min(1e-12), x), x)

    def size(self, delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """Sum of absolute changes, per example."""
        return delta.flatten(1).abs().sum(1)

    def to_8bit(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> UInt8[Tensor, "n *shape"]:
        """The nearest 8-bit image; a change that rounding made too long is truncated towards x instead."""
        self.check(x_adv, x)
        return _round_or_truncate(x_adv, x, lambda d: self.size(d) <= 255 * self.eps + 1e-6)


@dataclass(frozen=True)
class L0(_Ball):
    """At most eps pixels change, by any amount. A pixel of an image is all its channels at one place.

    Family: norm ball. Year: 2016. Reference: Papernot et al. 2016, sec. II, arXiv:1511.07528.
    """

    norm: ClassVar[str] = "L0"
    version: ClassVar[int] = 2  # since steps see the box

    def project(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The nearest point of ball and box: keep the pixels whose change saves most."""
        d = x_adv - x
        kept = x_adv.clamp(0, 1) - x
        saved = _pixels(d.square() - (d - kept).square())
        return (x + kept * _all_channels(self._best(saved, saved > 0), x)).clamp(0, 1)

    def steepest(self, gradient: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The sign on the eps pixels with the largest gradients."""
        worth = _pixels(gradient.abs())
        return gradient.sign() * _all_channels(self._best(worth, worth > 0), gradient)

    def step(
        self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"], gradient: Float[Tensor, "n *shape"], step_size: float
    ) -> Float[Tensor, "n *shape"]:
        """The `step_size` pixels, rounded up, that gain most by it go to the edge of the box.

        Of more than eps changed pixels those are put back whose change gains least, and a pixel is weighed against the one that it
        would replace: steps of any size end at the optimum of a linear function.
        """
        edge = torch.where(gradient == 0, x_adv, (gradient > 0).to(x.dtype))
        changed, now = _pixels((x_adv - x).abs()) > 0, _pixels(gradient * (x_adv - x))
        least = torch.where(changed, now, math.inf).amin(1, keepdim=True)
        full = changed.sum(1, keepdim=True) >= int(self.eps)
        gain = _pixels(gradient * (edge - x)) - torch.where(changed, now, torch.where(full, least, 0.0))
        moved = torch.where(_all_channels(self._best(gain, gain > 0, math.ceil(step_size)), x), edge, x_adv)
        changed = _pixels((moved - x).abs()) > 0
        return torch.where(_all_channels(self._best(_pixels(gradient * (moved - x)), changed), x), moved, x)

    def start(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """Random values on eps random pixels; keyed per example."""
        place = _pixels(seed.uniform(x[:, :1].expand_as(x) if x.dim() == 4 else x, 0, 1))
        return x + (seed.uniform(x, 0, 1) - x) * _all_channels(self._best(place, place > 0), x)

    def size(self, delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """Number of changed pixels, per example."""
        return _pixels(delta.abs()).gt(0).sum(1).to(delta.dtype)

    def to_8bit(self, x_adv: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> UInt8[Tensor, "n *shape"]:
        """The nearest 8-bit image; a pixel that did not move keeps its level."""
        self.check(x_adv, x)
        levels(x)
        return (255 * x_adv).round().clamp(0, 255).to(torch.uint8)

    def _best(self, worth: Tensor, among: Tensor, count: int | None = None) -> Tensor:
        """(n, pixels): True at the `count` pixels, or eps, of largest worth among those where `among` is True."""
        most = min(int(self.eps) if count is None else count, worth.shape[1])
        best = torch.where(among, worth, -math.inf).topk(most, dim=1).indices
        return torch.zeros_like(among).scatter(1, best, True) & among


def levels(x: Float[Tensor, "n *shape"]) -> Tensor:
    """x as integers 0..255 (int16). Errors: DataError if x is no 8-bit image."""
    scaled = 255 * x
    whole = scaled.round()
    if x.numel() and float((scaled - whole).abs().max()) > 1e-3:
        raise DataError(
            "x must be an 8-bit image (every pixel a whole number / 255). Round it first, or declare eight_bit = False."
        )
    return whole.to(torch.int16)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))


def _pixels(worth: Tensor) -> Tensor:
    return worth.sum(1).flatten(1) if worth.dim() == 4 else worth.flatten(1)


def _all_channels(place: Tensor, like: Tensor) -> Tensor:
    """(n, pixels) shaped to stand for every channel of `like`."""
    return place.view(len(like), 1, *like.shape[2:]) if like.dim() == 4 else place.view_as(like)


def _in_turn(worth: Tensor, most: Tensor, total: Tensor | float) -> Tensor:
    """(n, d): how `total`, a number or (n, 1), is handed out: the largest worth first, to each at most `most`."""
    order = worth.argsort(dim=1, descending=True, stable=True)
    each = most.gather(1, order)
    left = (total - (each.cumsum(1) - each)).clamp_min(0)
    return torch.zeros_like(most).scatter(1, order, torch.minimum(left, each))


def _project_by_dual(
    x: Tensor, eps: float, size: Callable[[Tensor], Tensor], shrink: Callable[[Tensor], Tensor], top: Tensor
) -> Tensor:
    """Bisection on the multiplier m in [0, top]; exact to float precision, and never outside."""

    def cut(m: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(shrink(_rows(m, x)), -x), 1 - x)

    low, high = torch.zeros_like(top), top
    fits = size(cut(low)) <= eps
    if not bool(fits.all()):
        for _ in range(60 if x.dtype == torch.float64 else 30):
            middle = (low + high) / 2
            inside = size(cut(middle)) <= eps
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    m = torch.where(fits, torch.zeros_like(high), high)
    return (x + cut(m)).clamp(0, 1) if eps > 0 else x.clone()


def _round_or_truncate(x_adv: Tensor, x: Tensor, inside: Callable[[Tensor], Tensor]) -> Tensor:
    clean = levels(x)
    rounded = (255 * x_adv).round().to(torch.int16) - clean
    truncated = (255 * (x_adv - x)).trunc().to(torch.int16)
    moved = torch.where(_rows(inside(rounded.double()), x), rounded, truncated)
    return (clean + moved).clamp(0, 255).to(torch.uint8)
