"""Random changes of training images that keep their label; an image and its stored crafts get the very same draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from firedoor import device
from firedoor import seed as seeds

__all__ = ["Augment", "augmentation", "choices"]

Augment = Literal["none", "shift", "shift-flip", "erase", "trivial", "rand"]
SHARE_ERASED = (0.02, 0.33)


def choices() -> tuple[str, ...]:
    """What `Fit.augment` may be."""
    return get_args(Augment)


def augmentation(kind: str, seed: int, ids: Sequence[str], epoch: int) -> Callable[[Tensor], Tensor]:
    """A function of (n, c, h, w) images in [0,1] that gives example i the same draw each time it is called.

    "shift": by up to an eighth of the side, with zero padding; "shift-flip": and a horizontal flip. Their draws are keyed by
    (seed, epoch, id). Kornia's follow a shift and flip, with draws keyed by (seed, epoch, ids of the batch): "erase" a rectangle of
    each second image (Zhong et al. 2020, arXiv:1708.04896), "trivial" (Mueller and Hutter 2021, arXiv:2103.10158), "rand" (Cubuk et
    al. 2020, arXiv:1909.13719).
    """

    def augment(x: Tensor) -> Tensor:
        if kind == "none":
            return x.to(device.current())
        with seeds.streams(seed, ids, draw=epoch, purpose="augment"):
            moved = _shift(x)
            moved = moved if kind == "shift" else _flip(moved)
        if kind in ("shift", "shift-flip"):
            return moved.to(device.current())
        with seeds.forked(seed, f"augment {epoch} {ids[0]} {len(ids)}"):
            changed: Tensor = _policy(kind)(_three(moved))
        return (changed if x.shape[1] > 1 else changed.mean(1, keepdim=True)).clamp_min(0).clamp_max(1).to(device.current())

    return augment


def _policy(kind: str) -> Callable[[Tensor], Tensor]:
    import kornia.augmentation as K

    if kind == "erase":
        policy = K.RandomErasing(p=0.5, scale=SHARE_ERASED)
    else:
        policy = K.auto.TrivialAugment() if kind == "trivial" else K.auto.RandAugment(n=2, m=9)
    return policy  # type: ignore[no-any-return]


def _three(x: Tensor) -> Tensor:
    """Kornia's colour changes ask for three channels."""
    return x if x.shape[1] == 3 else x[:, :1].expand(-1, 3, -1, -1)


def _shift(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    up, left = max(1, h // 8), max(1, w // 8)
    rows = seeds.integers(x, 2 * up + 1)[:, None] + torch.arange(h)
    columns = seeds.integers(x, 2 * left + 1)[:, None] + torch.arange(w)
    padded = F.pad(x, (left, left, up, up))
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(c)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _flip(x: Tensor) -> Tensor:
    turn = seeds.integers(x, 2).bool()
    return torch.where(turn[:, None, None, None], x.flip(3), x)
