"""Auto-PGD aimed at each of the likeliest other classes in turn: slower than one untargeted run, and harder to hide from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.auto_pgd import climb, logits_of, need_climbable, per_row, rivals
from firedoor.attacks.door import check_inputs, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Returned, Semantics
from firedoor.threat import Threat

__all__ = ["APGD_T"]


@dataclass(frozen=True)
class APGD_T:
    """APGD on the targeted DLR loss towards each of the `classes` other classes with the largest logits at x.

    Of all runs the point with the largest margin of any other class over y is returned, per example. With fewer than 4 classes the
    loss is the plain gap to the target class, since DLR has no fourth logit to divide by. G is at most classes x restarts x steps:
    a model of fewer classes has fewer targets. Linf, L2 and L1, each as in APGD.
    Errors: SpecError for the fields and for a targeted threat; DataError for x and y; ModelRefused for the logits.

    Family: white box. Year: 2020. G: 900. Tier: T1.
    Reference: Croce & Hein 2020, sec. 4 and Alg. 1, arXiv:2003.01690.
    """

    threat: Threat
    steps: int = 100
    restarts: int = 1
    classes: int = 9

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics(returned=Returned.BEST_LOSS, stochastic=True, targeted=False)

    def __post_init__(self) -> None:
        need_whole(self.steps, 1, "APGD_T: steps")
        need_whole(self.restarts, 1, "APGD_T: restarts")
        need_whole(self.classes, 1, "APGD_T: classes")
        if self.threat.targeted:
            raise SpecError(
                "APGD_T: the threat must not be targeted: it chooses the target classes itself. Use APGD with 'margin'."
            )
        need_climbable(self.threat, "APGD_T")

    @property
    def gradients(self) -> int:
        """At most: a run for each target class and restart."""
        return self.classes * self.restarts * self.steps

    @property
    def queries(self) -> int:
        """At most: the clean example, and the last point of each run."""
        return 1 + self.classes * self.restarts

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="APGD_T"):
            with torch.no_grad():
                targets = rivals(logits_of(model, x, y), y, self.classes)
            best, x_best = x.new_full((len(x),), -math.inf), x
            for target in targets.unbind(1):

                def judge(x_adv: Tensor, target: Tensor = target) -> tuple[Tensor, Tensor]:
                    logits = logits_of(model, x_adv, y)
                    return targeted_dlr(logits, y, target), losses.margin(logits, y)

                for _ in range(self.restarts):
                    x_adv, margin = climb(judge, self.threat, x, self.steps)
                    better = (margin > best) | (best == -math.inf)
                    best, x_best = torch.where(better, margin, best), torch.where(per_row(better, x), x_adv, x_best)
        return x_best


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_target - z_y) / (z_1st - (z_3rd + z_4th) / 2), per example; the plain gap below 4 classes."""
    gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    if logits.shape[1] < 4:
        return gap
    ranked = logits.topk(4, dim=1).values
    return gap / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2).clamp_min(1e-12)
