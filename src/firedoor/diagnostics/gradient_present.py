"""A model without an input gradient looks robust to every gradient attack, and is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firedoor import device, guard, losses, seed
from firedoor.diagnostics.outcomes import ids_of
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Classifier, Objective, Split, Symptom

__all__ = ["GradientPresent"]


@dataclass(frozen=True)
class GradientPresent:
    """A7: images whose input gradient is missing, zero or not finite, under cross-entropy and under the margin loss.

    suspect: any image under both, or more than 1 % under cross-entropy alone (saturation); fail: more than 1 % under both.

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3, arXiv:1802.00420; Carlini & Wagner 2016, arXiv:1607.04311 (saturation).
    """

    share: float = 0.01

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split`."""
        ce = _dead(model, split, losses.cross_entropy)
        both = ce & _dead(model, split, losses.margin)
        n, k, k_ce = len(split), int(both.sum()), int(ce.sum())
        status = "fail" if k > self.share * n else "suspect" if k or k_ce > self.share * n else "pass"
        text = {
            "fail": f"{k} of {n} images give no gradient: white-box robustness is an upper bound",
            "suspect": f"{k_ce} of {n} images give no cross-entropy gradient, {k} none at all: the loss saturates, use the margin",
            "pass": f"every gradient is there ({n} images)",
        }[status]
        ids = ids_of(split, both if k else ce)
        dead = k or k_ce
        bounds = clopper_pearson(dead, n)
        return Symptom(
            "A7", "gradient present", "mask", status, text, dead / max(n, 1), self.share, n, bounds.low, bounds.high, examples=ids
        )

    def passes(self, n: int) -> int:
        """One gradient of each loss."""
        return 4 * n


def _dead(model: Classifier, split: Split, loss: Objective) -> Tensor:
    """(n,) true where the input gradient is missing, zero or not finite."""
    with guard.no_side_effects(model), seed.streams(0, split.ids, purpose="A7"):
        x = split.x.detach().clone().to(device.current()).requires_grad_(True)
        total = loss(model(x), split.y.to(device.current())).sum()
        gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        return torch.ones(len(split), dtype=torch.bool)
    flat = gradient.flatten(1).cpu()
    return (flat == 0).all(1) | ~torch.isfinite(flat).all(1)
