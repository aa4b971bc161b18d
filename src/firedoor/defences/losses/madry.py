"""Adversarial training as min-max: train on what the attack makes of each batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from firedoor.defences.losses.inner import Mode, check_inner, craft_inner
from firedoor.losses import cross_entropy
from firedoor.protocols import Attack, Batch, Classifier, LossFn, Split, Store

__all__ = ["Madry"]


@dataclass(frozen=True)
class Madry:
    """Cross-entropy of x' alone, x' crafted afresh on the network being trained.

    Costs G + 1 passes per example for an attack of G gradients. `inner_mode`: mode of the network while it is attacked.

    Family: adversarial training. Year: 2018.
    Reference: Madry et al. 2018, sec. 2, arXiv:1706.06083.
    """

    attack: Attack
    inner_mode: Mode = "train"

    def __post_init__(self) -> None:
        check_inner("Madry", self.attack, self.inner_mode)

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""
        return lambda module, batch: self.outer(module, batch, self.craft(module, batch))

    def craft(self, module: nn.Module, batch: Batch) -> Tensor:
        """x' (n, *shape), detached."""
        return craft_inner(self.attack, module, batch, self.inner_mode)

    def outer(self, classifier: Classifier, batch: Batch, x_adv: Tensor) -> Tensor:
        """The loss at a given x', a scalar."""
        return cross_entropy(classifier(x_adv), batch.y).mean()
