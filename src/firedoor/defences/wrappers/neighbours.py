"""The mean of each pixel's neighbours, weighted: what bilateral and non-local filters share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["weighted_mean"]

Weight = Callable[[Tensor, int, int], Tensor]
"""(seen, down, right) to the weights (n, 1, h, w) of the neighbours in row `down` and column `right` of each window, from 0."""


def weighted_mean(x: Float[Tensor, "n c h w"], seen: Tensor, size: int, weight: Weight) -> Float[Tensor, "n c h w"]:
    """Over windows of size x size pixels of x, size odd, edges replicated. seen: what the weights are a function of."""
    shown = F.pad(x, (size // 2,) * 4, mode="replicate")
    total, weights = x * 0, x[:, :1] * 0
    for down, right in product(range(size), repeat=2):
        term: tuple[Tensor, Tensor] = _Term.apply(shown, seen, weight, (down, right, *x.shape[2:]))  # type: ignore[no-untyped-call]
        total, weights = total + term[0], weights + term[1]
    return total / weights


def _term(shown: Tensor, seen: Tensor, weight: Weight, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What the neighbours at one place add to the sum (n, c, h, w), and their weights."""
    down, right, h, w = place
    own = weight(seen, down, right)
    return own * shown[:, :, down : down + h, right : right + w], own


class _Term(torch.autograd.Function):
    """`_term`, computed again in the backward pass: it is cheap to compute and large to keep, and there are size^2 of them."""

    @staticmethod
    def forward(ctx: Any, shown: Tensor, seen: Tensor, weight: Weight, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(shown, seen)
        ctx.rest = weight, place
        return _term(shown, seen, weight, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
        with torch.enable_grad():
            out = _term(leaves[0], leaves[1], *ctx.rest)
        kept = [(o, g) for o, g in zip(out, gradients, strict=True) if o.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad([o for o, _ in kept], wanted, [g for _, g in kept]))
        return *(next(found) if leaf.requires_grad else None for leaf in leaves), None, None
