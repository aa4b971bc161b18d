"""Training against the transfer attacks that public models make possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.stored import Lookup, stored_crafts
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Attack, Batch, Dataset, LossFn, Model, Split, Store

__all__ = ["PubDef"]

MODES = ("all", "random", "top-k", "moving-average")


@dataclass(frozen=True)
class PubDef:
    """Cross-entropy of clean examples and of stored crafts of public sources, best one per type of training.

    Four weightings of the K sources. "random" draws clean or one source per example and epoch (1x). The others show clean and every
    source (K+1 x): "all" weighs them equally; "top-k" takes clean and, for each example, the k sources of largest loss, equally;
    "moving-average" leaves clean 1/(K+1) and shares the rest by each source's mean loss, averaged over batches with `decay`.
    `crafts`: stored versions per source, one drawn per epoch. Claims nothing against white-box attacks.

    Family: adversarial training. Year: 2024.
    Reference: Sitawarin et al. 2024, arXiv:2310.17645.
    """

    sources: tuple[Model, ...]
    attack: Attack
    data: Dataset
    mode: Literal["all", "random", "top-k", "moving-average"] = "random"
    part: Literal["source", "target"] = "target"
    crafts: int = 1
    k: int = 1
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SpecError(f"PubDef: mode must be one of {', '.join(MODES)}, got {self.mode!r}. Choose one.")
        if self.mode == "top-k" and not 1 <= self.k <= len(self.sources):
            raise SpecError(f"PubDef: k must be 1 to the number of sources ({len(self.sources)}), got {self.k}. Try 1.")
        if not 0 <= self.decay < 1:
            raise SpecError(f"PubDef: decay must be in [0, 1), got {self.decay}. Try 0.9; 0 weighs by the last batch alone.")
        if self.part not in ("source", "target"):
            raise SpecError(f"PubDef: part must be 'source' or 'target', got {self.part!r}. Evaluation examples never train.")
        if self.crafts < 1:
            raise SpecError(f"PubDef: crafts must be 1 or more, got {self.crafts}. Use 1 for one version per source.")
        if self.attack.threat.targeted:
            raise SpecError("PubDef: the attack must be untargeted, got targeted=True. Remove it.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Craft, or load, all versions of all sources. Errors: DataError if they do not cover `split`."""
        versions = [
            [stored_crafts(s, self.attack, self.data, self.part, split, store, key) for key in range(self.crafts)]
            for s in self.sources
        ]

        return _Live(self, versions)


class _Live:
    """The loss of a batch. What it carries from batch to batch is each source's average loss, in mode "moving-average"."""

    def __init__(self, recipe: PubDef, versions: list[list[Lookup]]) -> None:
        self.recipe, self.versions = recipe, versions
        self.whole_batches = recipe.mode == "moving-average"
        self.average = torch.full((len(versions),), 1 / max(len(versions), 1))

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        recipe = self.recipe
        views = [batch.x, *(batch.augment(_one_of(v, batch)) for v in self.versions)]
        if recipe.mode == "random":
            chosen = seed.integers(batch.x, len(views))
            x = torch.stack(views)[chosen, torch.arange(len(chosen))]
            return cross_entropy(module(x), batch.y).mean()
        each = cross_entropy(module(torch.cat(views)), batch.y.repeat(len(views)))
        if recipe.mode == "all" or len(views) == 1:
            return each.mean()
        each = each.view(len(views), -1)  # (1 + K, n), clean first
        if recipe.mode == "top-k":
            hardest = each[1:].topk(recipe.k, dim=0).values
            return torch.cat([each[:1], hardest]).mean()
        means = each.mean(1)
        self.average = recipe.decay * self.average.to(means.device) + (1 - recipe.decay) * means[1:].detach()
        shares = self.average / self.average.sum().clamp_min(1e-12)
        clean = 1 / len(views)
        return clean * means[0] + (1 - clean) * (shares * means[1:]).sum()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"average": self.average}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.average = state["average"]


def _one_of(versions: list[Lookup], batch: Batch) -> Tensor:
    if len(versions) == 1:
        return versions[0](batch.ids)
    chosen = seed.integers(batch.x, len(versions))
    return torch.stack([v(batch.ids) for v in versions])[chosen, torch.arange(len(chosen))]
