"""Transfer training on random mixtures of what several attacks made of public models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.mixtures import check_mixtures, mixtures
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Attack, Batch, Dataset, LossFn, Model, Split, Store

__all__ = ["Firebreak"]


@dataclass(frozen=True)
class Firebreak:
    """CE(f(x'), y), with x' a mixture of what `attacks` add to x on `sources`, drawn anew per example and epoch, at full strength.

    A model that is trained on a few stored examples per image learns those, and loses most of it on another source; between them lies
    a whole region, which costs nothing more to visit. `clean`: how often an example is shown as it is instead. At 0 the network is good
    on attacked images only, as the hardened network of a Gate may be. 1 pass. Claims nothing against white-box attacks.
    Errors: SpecError for a share outside [0, 1], no source, no attack, or attacks under different threats.

    Family: adversarial training. Year: 2026.
    Reference: this project, docs/training.md; after Sitawarin et al. 2024, arXiv:2310.17645, and Zhang et al. 2018, arXiv:1710.09412.
    """

    sources: tuple[Model, ...]
    attacks: tuple[Attack, ...]
    data: Dataset
    clean: float = 0.0
    part: Literal["source", "target"] = "target"

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise SpecError(f"Firebreak: clean must be in [0, 1], got {self.clean}. It is a share; try 0.25, or 0 behind a Gate.")
        check_mixtures("Firebreak", self.sources, self.attacks, self.part)

    def start(self, store: Store, split: Split) -> LossFn:
        """Load the crafts, making first what the store does not have. Errors: DataError if they do not cover `split`."""
        mix = mixtures(self.sources, self.attacks, self.data, self.part, split, store)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            x = mix(batch)
            if self.clean > 0:
                flat = batch.x.flatten(1)
                as_it_is = seed.uniform(flat[:, :1], 0, 1)[:, 0] < self.clean
                x = torch.where(as_it_is.view(-1, *[1] * (x.dim() - 1)), batch.x, x)
            return cross_entropy(module(x), batch.y).mean()

        return loss
