"""Square Attack: random search by squares, which needs the scores of the model and no gradient. Masked gradients do not stop it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.door import check_inputs, check_logits, need_number, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Returned, Semantics
from firedoor.threat import Threat

__all__ = ["Square"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: when the area of a square is halved
BLOCK = 32  # proposals whose random numbers are drawn at once


@dataclass(frozen=True)
class Square:
    """Stripes of +-eps, then one square after the other that is kept where it raises the margin.

    Each example has squares of its own; their share of the image starts at `p` and is halved on the published schedule, scaled to
    `queries`. L-inf: a square sets each channel to +-eps. L2 and L1: it takes the budget of a second square and all that is unspent,
    as a bump with two halves of opposite sign. Exactly `queries` forward passes per example, the first one included, and no early
    stop: an example that is fooled goes on. What raises the margin by no more than rounding is not kept, nor a margin that is not
    finite. Vectors (n, d) are images of one row, so that squares are intervals.
    Errors: SpecError for the fields and for L0; DataError, naming the example, for x and y; ModelRefused for logits of a wrong shape.

    Family: query. Year: 2020. G: 0. Queries: 1000. Tier: T1.
    Reference: Andriushchenko et al. 2020, Alg. 1 to 3, arXiv:1912.00049; for L1 Croce & Hein 2021, sec. 5, arXiv:2103.01208.
    """

    threat: Threat
    queries: int = 1000
    p: float = 0.8

    needs: ClassVar[Access] = Access.SCORES
    semantics: ClassVar[Semantics] = Semantics(returned=Returned.BEST_LOSS, stochastic=True)
    gradients: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.queries, 1, "Square: queries")
        need_number(self.p, 0, 1, "Square: p")
        if self.threat.norm not in ("Linf", "L2", "L1"):
            raise SpecError(f"Square needs an Linf, L2 or L1 threat, got {self.threat.norm}. Use one of them.")

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        return self._run(model, x, y, None)

    def from_start(
        self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], x_start: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n *shape"]:
        """The same search, begun at x_start, projected, instead of at stripes."""
        return self._run(model, x, y, x_start)

    def _run(self, model: Classifier, x: Tensor, y: Tensor, x_start: Tensor | None) -> Tensor:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="Square"), torch.no_grad():
            shape = x.shape
            x = x if x.dim() == 4 else x.flatten(1)[:, None, None]
            start = _stripes(x, self.threat) if x_start is None else self.threat.project(x_start.detach().view_as(x), x)
            return self._search(model, x, y, start, shape).view(shape)

    def _search(self, model: Classifier, x: Tensor, y: Tensor, x_best: Tensor, shape: torch.Size) -> Tensor:
        sign, largest = -1.0 if self.threat.targeted else 1.0, int(y.max())
        propose = _square if self.threat.norm == "Linf" else _bump

        def margin(at: Tensor) -> tuple[Tensor, Tensor]:
            """And how far rounding may move it: a square that changes nothing is not kept or dropped by the size of its batch."""
            logits = model(at.reshape(shape).clone())
            check_logits(logits, len(at), largest)
            least = torch.finfo(torch.float64 if logits.dtype == torch.float64 else torch.float32).eps
            rounding = 32 * least * logits.abs().amax(1).nan_to_num(0, 0, 0)
            return torch.nan_to_num(sign * losses.margin(logits, y), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf), rounding

        reached, _ = margin(x_best)
        for i, numbers in enumerate(_draws(x, self.queries - 1)):
            x_new = propose(x, x_best, self.threat, numbers, self._share(i))
            now, rounding = margin(x_new)
            better = now - rounding > reached
            reached = torch.where(better, now, reached)
            x_best = torch.where(better.view(-1, 1, 1, 1), x_new, x_best)
        return x_best

    def _share(self, i: int) -> float:
        passed = sum(10_000 * i > self.queries * at for at in HALVINGS)
        return self.p * 0.5**passed


def _draws(x: Tensor, times: int) -> Iterator[Tensor]:
    """Uniform numbers (n, 5 + channels) for each proposal, drawn by the block."""
    for first in range(0, times, BLOCK):
        numbers = seed.uniform(x.new_empty(len(x), BLOCK, 5 + x.shape[1]), 0, 1)
        yield from numbers.unbind(1)[: times - first]


def _stripes(x: Tensor, threat: Threat) -> Tensor:
    """L-inf: each column of each channel moves by +-eps. L2, L1: a five by five pattern of bumps, of length eps."""
    n, c, h, w = x.shape
    if threat.norm == "Linf":
        return threat.project(x + threat.eps * _signs(seed.uniform(x[:, :, :1], 0, 1)), x)
    high, wide = max(h // 5, 1), max(w // 5, 1)
    rows, columns = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)[None]
    numbers = seed.uniform(x.new_empty(n, c + 1, -(-h // high), -(-w // wide)), 0, 1)
    each = numbers[:, :, rows // high, columns // wide]  # one number per tile, spread over its pixels
    bumps = _bumps(high, wide).to(x)[:, rows % high, columns % wide]
    pattern = torch.where(each[:, :1] < 0.5, bumps[0], bumps[1]) * _signs(each[:, 1:])
    return _scaled(pattern, x, threat)


def _square(x: Tensor, x_best: Tensor, threat: Threat, numbers: Tensor, share: float) -> Tensor:
    """x_best with a square at +-eps, channel by channel; the opposite signs where that would change nothing."""
    _, _, inside = _window(x, numbers[:, :2], *_sides(x, share, 1))
    up = numbers[:, 5:, None, None] < 0.5
    low, high = threat.project(x - threat.eps, x), threat.project(x + threat.eps, x)
    x_new = torch.where(inside, torch.where(up, high, low), x_best)
    idle = (x_new == x_best).flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(idle & inside, torch.where(up, low, high), x_new)


def _bump(x: Tensor, x_best: Tensor, threat: Threat, numbers: Tensor, share: float) -> Tensor:
    """x_best with the budget of two windows, and what is unspent, put into a bump in the first one: Alg. 3, q-norms for L1."""
    q, delta, (high, wide) = (2 if threat.norm == "L2" else 1), x_best - x, _sides(x, share, 3)
    rows, columns, first = _window(x, numbers[:, :2], high, wide)
    _, _, second = _window(x, numbers[:, 2:4], high, wide)

    def mass(of: Tensor) -> Tensor:
        """|of|_q^q per example and channel."""
        return of.abs().pow(q).sum((2, 3), keepdim=True)

    def unit(of: Tensor) -> Tensor:
        return of / mass(of).pow(1 / q).clamp_min(1e-12)

    unspent = (threat.eps**q - threat.size(delta).pow(q)).clamp_min(0).view(-1, 1, 1, 1) / x.shape[1]
    budget = (unspent + mass(delta * (first | second))).pow(1 / q)
    bumps = _bumps(high, wide).to(x)[:, rows.clamp_min(0).clamp_max(high - 1), columns.clamp_min(0).clamp_max(wide - 1)]
    shape = torch.where(numbers[:, 4].view(-1, 1, 1, 1) < 0.5, bumps[0], bumps[1]) * first
    new = unit(shape) * _signs(numbers[:, 5:, None, None])
    mixed = new + unit(delta * first)
    mixed = torch.where(mass(mixed) > 1e-12, mixed, new)  # where both cancel out
    return _scaled(torch.where(first, unit(mixed) * budget, delta * ~second), x, threat)


def _sides(x: Tensor, share: float, least: int) -> tuple[int, int]:
    """Height and width of a window with that share of the pixels: a square, or as long as it must be in a narrow image."""
    h, w = x.shape[2:]
    area = share * h * w
    side = max(round(math.sqrt(area)), least)
    high = min(side if side <= w else max(round(area / w), least), h)
    wide = min(side if side <= h else max(round(area / h), least), w)
    return high, wide


def _window(x: Tensor, numbers: Tensor, high: int, wide: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each pixel lies as seen from the corner of its example's window: rows, columns, and whether inside."""
    h, w = x.shape[2:]
    top, left = (numbers[:, 0] * (h - high + 1)).long(), (numbers[:, 1] * (w - wide + 1)).long()
    rows = torch.arange(h, device=x.device).view(1, 1, -1, 1) - top.view(-1, 1, 1, 1)
    columns = torch.arange(w, device=x.device).view(1, 1, 1, -1) - left.view(-1, 1, 1, 1)
    return rows, columns, (rows >= 0) & (rows < high) & (columns >= 0) & (columns < wide)


@functools.lru_cache(maxsize=64)
def _bumps(high: int, wide: int) -> Tensor:
    """(2, high, wide): two hills of opposite sign, one above the other and side by side; as far as there is room for two."""
    above = torch.cat((_hill(high // 2, wide), -_hill(high - high // 2, wide)))
    beside = torch.cat((_hill(high, wide // 2), -_hill(high, wide - wide // 2)), dim=1)
    return torch.stack((above if high > 1 or wide == 1 else beside, beside if wide > 1 or high == 1 else above))


def _hill(high: int, wide: int) -> Tensor:
    """Unit length; falls with the distance r to its middle as the sum of 1/(k+1)^2 over k >= r: eq. 2."""
    r = torch.maximum((torch.arange(high) - high // 2).abs()[:, None], (torch.arange(wide) - wide // 2).abs()[None])
    steps = torch.arange(1, max(high, wide) // 2 + 2, dtype=torch.float64).pow(-2)
    hill = steps.flip(0).cumsum(0).flip(0)[r]
    return hill / hill.square().sum().sqrt()


def _signs(unit: Tensor) -> Tensor:
    return torch.where(unit < 0.5, -torch.ones_like(unit), torch.ones_like(unit))


def _scaled(delta: Tensor, x: Tensor, threat: Threat) -> Tensor:
    length = threat.size(delta).clamp_min(1e-12).view(-1, 1, 1, 1)
    eps = threat.eps * (1 - 32 * torch.finfo(x.dtype).eps)  # a hair inside, or rounding would start the projection's bisection
    return threat.project(x + eps * delta / length, x)
