"""Crafts of static sources, made once before training and looked up by example id, never by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from firedoor.craft import Craft
from firedoor.errors import DataError
from firedoor.protocols import Attack, Dataset, Model, Split, Store

__all__ = ["Lookup", "crafts_for", "stored_crafts"]

Lookup = Callable[[Sequence[str]], Tensor]
"""Ids of n examples to their adversarial examples (n, *shape)."""


def stored_crafts(source: Model, attack: Attack, data: Dataset, part: str, split: Split, store: Store, key: int = 0) -> Lookup:
    """What `attack` on `source` made of the training examples, 8-bit like every evaluated craft.

    Errors: DataError if an example of `split` is not in that part of `data`.
    """
    crafted = Craft(source=source, attack=attack, data=data, part=part, seed=key).load(store)
    place = {name: row for row, name in enumerate(crafted.ids)}
    missing = [name for name in split.ids if name not in place]
    if missing:
        raise DataError(
            f"stored crafts must cover every training example, but {len(missing)} of {len(split)} (first: {missing[0]!r}) are not "
            f"in part {part!r} of the data that is attacked. Train on that part, or set `part`."
        )
    kept = (255 * crafted.x).round().to(torch.uint8) if data.eight_bit else crafted.x  # a quarter of the memory

    def lookup(ids: Sequence[str]) -> Tensor:
        rows = kept[[place[name] for name in ids]]
        return rows.float() / 255 if data.eight_bit else rows

    return lookup


def crafts_for(loss: Any) -> list[Craft]:
    """Every craft that a loss with `sources`, `attack` or `attacks`, `data` and `part` looks up; none for any other. What it costs counts."""
    if not all(hasattr(loss, field) for field in ("sources", "data", "part")):
        return []
    attacks = getattr(loss, "attacks", None) or ((loss.attack,) if hasattr(loss, "attack") else ())
    keys = range(getattr(loss, "crafts", 1))
    return [Craft(s, a, loss.data, loss.part, seed=key) for s in loss.sources for a in attacks for key in keys]
