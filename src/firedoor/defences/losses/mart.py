"""Adversarial training that asks more of the examples that the network gets wrong anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from firedoor.defences.losses.ascent import ascend, check_ascent, nearby
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy, kl
from firedoor.protocols import Batch, Classifier, LossFn, Split, Store
from firedoor.threat import Threat

__all__ = ["MART", "boosted_cross_entropy"]


@dataclass(frozen=True)
class MART:
    """BCE(p(x'), y) + lam KL(p(x) || p(x')) (1 - p_y(x)), where x' raises the cross-entropy from x + .001 N(0, 1).

    BCE = -log p_y - log(1 - max_{j != y} p_j). Costs steps + 2 passes; lam 0 costs steps + 1, as x is not forwarded then.
    `step_size` None means eps / 4. Expect some masking: attacks with a margin loss do better on it than cross-entropy says.
    Errors: SpecError for a field out of range.

    Family: adversarial training. Year: 2020.
    Reference: Wang et al. 2020, sec. 3, ICLR, openreview.net rklOg6EFwS.
    """

    threat: Threat
    lam: float = 5.0
    steps: int = 10
    step_size: float | None = None
    inner_mode: Mode = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise SpecError(f"MART: lam must be 0 or more and finite, got {self.lam}. Try 5.")
        check_ascent("MART", self.threat, self.steps, self.step_size, self.inner_mode)

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""
        return lambda module, batch: self.outer(module, batch, self.craft(module, batch))

    def craft(self, module: nn.Module, batch: Batch) -> Tensor:
        """x' (n, *shape), detached."""
        with frozen(module, batch, self.inner_mode) as classifier:
            start = nearby(self.threat, batch.x)
            return ascend(lambda x: cross_entropy(classifier(x), batch.y), start, batch.x, self.threat, self.steps, self.step_size)

    def outer(self, classifier: Classifier, batch: Batch, x_adv: Tensor) -> Tensor:
        """The loss at a given x', a scalar."""
        if self.lam == 0:
            return boosted_cross_entropy(classifier(x_adv), batch.y).mean()
        clean, attacked = classifier(batch.x), classifier(x_adv)
        missed = -torch.expm1(-cross_entropy(clean, batch.y))
        return (boosted_cross_entropy(attacked, batch.y) + self.lam * kl(attacked, clean) * missed).mean()


def boosted_cross_entropy(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log p_y - log(1 - max_{j != y} p_j), per example; finite for every finite logit."""
    rival = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -torch.inf).logsumexp(1)
    return cross_entropy(logits, y) + F.softplus(logits.gather(1, rival)[:, 0] - others, threshold=80)
