"""Attacks that know nothing of the model, or of the example: what a table must show beside every real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import seed
from firedoor.attacks.door import check_inputs, need_whole
from firedoor.protocols import Access, Attack, Classifier, Semantics
from firedoor.threat import Threat

__all__ = ["ShuffledDelta", "SignNoise", "UniformNoise"]


@dataclass(frozen=True)
class SignNoise:
    """FGSM along a random gradient: for L-inf, eps times a random sign per pixel. The model is not asked.

    For L2 a Gaussian direction of length eps, for L1 and L0 what one step on random pixels gives. `draw`: which of the draws.

    Family: null. Year: 2018. G: 0. Tier: T0.
    Reference: Tramer et al. 2018 (the random step of R+FGSM), arXiv:1705.07204.
    """

    threat: Threat
    draw: int = 0

    needs: ClassVar[Access] = Access.LABELS
    semantics: ClassVar[Semantics] = Semantics(stochastic=True)
    gradients: ClassVar[int] = 0
    queries: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.draw, 0, "SignNoise: draw")

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with seed.own_streams(x, purpose="SignNoise"):
            for _ in range(self.draw + 1):  # so that `draw` counts in a stream that the caller opened, too
                noise = seed.normal(x)
        return self.threat.step(x, x, noise, self.threat.eps)


@dataclass(frozen=True)
class UniformNoise:
    """A uniform point of the ball, cut with the box: where PGD starts. The model is not asked. `draw`: which of the draws.

    Family: null. Year: 2018. G: 0. Tier: T0.
    Reference: Madry et al. 2018, sec. 2.1 (random start), arXiv:1706.06083.
    """

    threat: Threat
    draw: int = 0

    needs: ClassVar[Access] = Access.LABELS
    semantics: ClassVar[Semantics] = Semantics(stochastic=True)
    gradients: ClassVar[int] = 0
    queries: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.draw, 0, "UniformNoise: draw")

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with seed.own_streams(x, purpose="UniformNoise"):
            for _ in range(self.draw + 1):
                x_adv = self.threat.start(x)
        return x_adv


@dataclass(frozen=True)
class ShuffledDelta:
    """The perturbation that `attack` finds for another example of the batch, projected again: what a delta does by its looks alone.

    Who gets whose depends on the ids in the batch, not on their order. An example alone in its batch gets its own perturbation with
    the pixels in random order.

    Family: null. Year: 2020. G: that of `attack`. Tier: T0.
    Reference: Zhang et al. 2020 (perturbations act as features of their own), arXiv:2007.06189.
    """

    attack: Attack

    semantics: ClassVar[Semantics] = Semantics(mixes_batch=True, stochastic=True)

    @property
    def threat(self) -> Threat:
        return self.attack.threat

    @property
    def needs(self) -> Access:
        return self.attack.needs

    @property
    def gradients(self) -> int:
        return self.attack.gradients

    @property
    def queries(self) -> int:
        return self.attack.queries

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with seed.own_streams(x, purpose="ShuffledDelta"):
            delta = self.attack(model, x, y) - x
            if len(x) == 1:
                place = seed.uniform(x, 0, 1).flatten(1).argsort(1)
                return self.threat.project(x + delta.flatten(1).gather(1, place).view_as(x), x)
            ring = seed.integers(x, 2**30).argsort()  # each gives its delta to the next one in the ring: nobody keeps his own
        return self.threat.project(x.index_add(0, ring.roll(1), delta[ring]), x)
