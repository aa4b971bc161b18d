"""Less of another data set, for sources whose owner has less to train on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from firedoor.catalogue import nearest
from firedoor.data.digits import Digits
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Dataset, Split

__all__ = ["Subset"]


@dataclass(frozen=True)
class Subset:
    """The first `share` of each training part of `data`, in its random order, and its development and evaluation images.

    Images of the classes that `without` names leave development and evaluation: for sources that cannot give those labels. So a source trained on a tenth of the target's images has share = 0.1 and part "target", and one on a tenth of a disjoint half
    has part "source" of a data set whose splits are disjoint.
    Errors: SpecError for a share outside (0, 1], and for a class that `data` does not have; DataError if too few images are left.

    Family: subset. Year: 2019.
    Reference: surrogates trained on fewer data, Demontis et al. 2019, sec. 4, arXiv:1809.02861.
    """

    data: Dataset = field(default_factory=Digits)
    share: float = 0.1
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise SpecError(f"Subset: share must be in (0, 1], got {self.share!r}. Use 0.1 for a tenth.")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def eight_bit(self) -> bool:
        return self.data.eight_bit

    def split(self, part: str) -> Split:
        return _cut(self, part)

    def digest(self) -> str:
        return hashlib.sha256(f"subset/{self.share!r}/{list(self.without)!r}/{self.data.digest()}".encode()).hexdigest()


@lru_cache(maxsize=8)
def _cut(subset: Subset, part: str) -> Split:
    whole = subset.data.split(part)
    if part in ("source", "target"):
        size = round(subset.share * len(whole))
        if size < 2:
            raise DataError(f"Subset: a training part needs 2 images or more, got {size} of {len(whole)}. Raise share.")
        return whole[:size]
    names = subset.data.classes
    for name in subset.without:
        if name not in names:
            raise SpecError(f"Subset: without must name classes of the data, got {name!r}.{nearest(name, names)}")
    if not subset.without:
        return whole
    gone = torch.tensor([names.index(name) for name in subset.without])
    rows = (~torch.isin(whole.y, gone)).nonzero()[:, 0]
    if part == "evaluation" and len(rows) == 0:
        raise DataError(
            f"Subset: evaluation needs an image, got none without {', '.join(subset.without)}. Leave out fewer classes."
        )
    return Split(whole.x[rows], whole.y[rows], tuple(whole.ids[int(i)] for i in rows))
