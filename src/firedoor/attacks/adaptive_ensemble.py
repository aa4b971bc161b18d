"""AdaEA: an ensemble attack that weighs each network by what its own step does to the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses
from firedoor.attacks.door import check_inputs, check_logits, members_of, need_number, need_whole
from firedoor.attacks.parts.momentum import per_mean_size
from firedoor.attacks.svre import ascent
from firedoor.errors import ModelRefused
from firedoor.protocols import Access, Classifier, Semantics
from firedoor.threat import Threat

__all__ = ["AdaEA"]


@dataclass(frozen=True)
class AdaEA:
    """MI_FGSM on sum_j w_j z_j, the networks' logits weighed by how well a step on network j alone transfers to the others.

    w = softmax(beta sum_{i != j} L_i(x_j) / L_i(x_i)), x_j = x after one step on network j (the ratio is turned round where the
    threat is targeted). The gradient counts only at pixels where the networks' gradients agree: where the mean cosine over channels
    of all pairs is at least `threshold`; -1 is no filter, and an example of which the filter would leave nothing goes without. For
    vectors the cosine is that of the whole gradients. All of it per example. step_size=None is eps/steps. A single network is an
    ensemble of one.

    G counts passes through the whole source; one through one of its K networks is 1/K. A step takes two, the networks' gradients and
    the weighted one, and K forward passes beside them: `members` is the largest K that `queries` counts for.
    Errors: SpecError for the fields; ModelRefused for a source of more networks, and for logits of a wrong shape; DataError, naming
    the example, for x and y.

    Family: ensemble. Year: 2023. G: 20. Tier: T2.
    Reference: Chen et al. 2023, sec. 3.2 and 3.3, arXiv:2308.02897.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    beta: float = 10.0
    threshold: float = -0.3
    members: int = 4

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "AdaEA: steps")
        need_whole(self.members, 1, "AdaEA: members")
        need_number(self.decay, 0, math.inf, "AdaEA: decay")
        need_number(self.beta, 0, math.inf, "AdaEA: beta")
        need_number(self.threshold, -1, 1, "AdaEA: threshold")
        if self.step_size is not None:
            need_number(self.step_size, 0, math.inf, "AdaEA: step_size")

    @property
    def gradients(self) -> int:
        """Whole passes: two per step."""
        return 2 * self.steps

    @property
    def queries(self) -> int:
        """Whole forward passes: one per network and step; none for a single network, or where beta is 0."""
        return self.members * self.steps if self.members > 1 and self.beta else 0

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        threat, members = self.threat, members_of(model)
        if len(members) > self.members:
            raise ModelRefused(f"AdaEA counts for {self.members} networks, but the source has {len(members)}. Set `members`.")
        step_size = threat.eps / self.steps if self.step_size is None else self.step_size
        with guard.no_side_effects(model):
            memory, x_adv = torch.zeros_like(x), x
            for _ in range(self.steps):
                each = [ascent(m, y, threat.targeted)(x_adv) for m in members]
                trials = [threat.step(x_adv, x, g, step_size) for g in each]
                weights = self._weights(members, trials, y)
                g = ascent(_weighted(members, weights), y, threat.targeted)(x_adv)
                memory = self.decay * memory + per_mean_size(g * _agreed(each, self.threshold))
                x_adv = threat.step(x_adv, x, memory, step_size)
        return x_adv

    def _weights(self, members: tuple[Classifier, ...], trials: list[Tensor], y: Tensor) -> Tensor:
        """(K, n): one weight per network and example, with sum 1."""
        k, n = len(members), len(y)
        if k == 1 or self.beta == 0:
            return trials[0].new_full((k, n), 1 / k)
        with torch.no_grad():
            loss = torch.stack([_losses(m, torch.cat(trials), y).to(trials[0].dtype).view(k, n) for m in members])  # [i, j]
        own = loss.diagonal().T[:, None].clamp_min(1e-12)  # [i, 1]: L_i(x_i)
        loss = loss.clamp_min(1e-12)
        ratio = own / loss if self.threat.targeted else loss / own
        others = ratio.masked_fill(torch.eye(k, dtype=torch.bool, device=y.device)[..., None], 0).sum(0)
        return torch.nan_to_num(self.beta * others, nan=0.0, posinf=1e30).softmax(0)


def _losses(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x.clone())
    check_logits(logits, len(x), int(y.max()))
    return losses.cross_entropy(logits, y.repeat(len(x) // len(y)))


def _weighted(members: tuple[Classifier, ...], weights: Tensor) -> Classifier:
    def logits(x: Tensor) -> Tensor:
        each = [m(x.clone()) for m in members]
        return torch.stack([w[:, None].to(z.dtype) * z for w, z in zip(weights, each, strict=True)]).sum(0)

    return logits


def _agreed(gradients: list[Tensor], threshold: float) -> Tensor:
    """1 at pixels where the mean cosine of all pairs is at least the threshold, 0 elsewhere; 1 everywhere if it is nowhere."""
    k, like = len(gradients), gradients[0]
    if k == 1 or threshold == -1:
        return torch.ones_like(like[:, :1])
    units = []
    for g in gradients:
        scaled = g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        units.append(scaled / scaled.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12))
    pairs = [(units[i] * units[j]).sum(1, keepdim=True) for i in range(k) for j in range(i)]
    agreed = torch.stack(pairs).mean(0) >= threshold
    none = ~agreed.flatten(1).any(1).view(-1, *[1] * (like.dim() - 1))
    return (agreed | none).to(like.dtype)
