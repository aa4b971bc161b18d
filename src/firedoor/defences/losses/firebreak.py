"""Transfer training that moves the stored examples on, and learns from what the public sources say of clean images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.ascent import ascend
from firedoor.defences.losses.inner import Mode, frozen
from firedoor.defences.losses.stored import stored_crafts
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy, kl
from firedoor.protocols import Attack, Batch, Dataset, LossFn, Model, Split, Store

__all__ = ["Firebreak"]


@dataclass(frozen=True)
class Firebreak:
    """clean D(f(x)) + (1 - clean) D(f(x')), with D(z) = (1 - soft) CE(z, y) + soft KL(te(x) || softmax z).

    x' begins at x (as often as at each source) or at what `attack` made of x on one public source, drawn per example and epoch, and
    goes `steps` steps of `step_size` up the student's own cross-entropy inside the threat of `attack`: unseen sources and attacks end
    near the stored examples, not on them. te is the softmax of `teacher`: an ensemble of the sources, which are trained anyway, gives
    back the clean accuracy that robustness costs. Costs 2 + steps passes, and a forward pass of the teacher; a term of weight 0 is not
    forwarded. clean 1 with soft 0 is plain training. `step_size` None means eps / 4. Claims nothing against white-box attacks.
    Errors: SpecError for a field out of range, and for soft without a teacher.

    Family: adversarial training. Year: 2026.
    Reference: this project, docs/results/README.md; after Sitawarin et al. 2024, arXiv:2310.17645, and Hinton et al. 2015,
    arXiv:1503.02531.
    """

    sources: tuple[Model, ...]
    attack: Attack
    data: Dataset
    teacher: Model | None = None
    soft: float = 0.0
    clean: float = 0.5
    steps: int = 1
    step_size: float | None = None
    part: Literal["source", "target"] = "target"
    inner_mode: Mode = "train"

    def __post_init__(self) -> None:
        for name in ("soft", "clean"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(f"Firebreak: {name} must be in [0, 1], got {value}. It is a share; try 0.5.")
        if self.soft > 0 and self.teacher is None:
            raise SpecError(
                f"Firebreak: soft = {self.soft} needs a teacher, got none. Name an Ensemble of the sources, or set soft = 0."
            )
        if self.steps < 0:
            raise SpecError(f"Firebreak: steps must be 0 or more, got {self.steps}. Try 1.")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise SpecError(f"Firebreak: step_size must be positive, got {self.step_size}. Leave it out for eps / 4.")
        if self.part not in ("source", "target"):
            raise SpecError(f"Firebreak: part must be 'source' or 'target', got {self.part!r}. Evaluation examples never train.")
        if self.attack.threat.targeted:
            raise SpecError("Firebreak: the attack must be untargeted, got targeted=True. Remove it: labels are the ones to leave.")
        if self.inner_mode not in ("train", "eval"):
            raise SpecError(f"Firebreak: inner_mode must be 'train' or 'eval', got {self.inner_mode!r}. Choose one.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Load the teacher and the crafts, making first what the store does not have. Errors: DataError if they do not cover `split`."""
        stored = [stored_crafts(s, self.attack, self.data, self.part, split, store) for s in self.sources]
        teacher = self.teacher.load(store) if self.teacher is not None and self.soft > 0 else None

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            taught = None
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(batch.x)

            def distance(logits: Tensor) -> Tensor:
                if taught is None:
                    return cross_entropy(logits, batch.y).mean()
                return ((1 - self.soft) * cross_entropy(logits, batch.y) + self.soft * kl(logits, taught)).mean()

            if self.clean == 1:
                return distance(module(batch.x))
            views = [batch.x, *(batch.augment(lookup(batch.ids)) for lookup in stored)]
            chosen = seed.integers(batch.x, len(views))
            x_adv = torch.stack(views)[chosen, torch.arange(len(chosen))]
            if self.steps:
                with frozen(module, batch, self.inner_mode) as classifier:
                    raised = lambda x: cross_entropy(classifier(x), batch.y)  # noqa: E731
                    x_adv = ascend(raised, x_adv, batch.x, self.attack.threat, self.steps, self.step_size)
            if self.clean == 0:
                return distance(module(x_adv))
            return self.clean * distance(module(batch.x)) + (1 - self.clean) * distance(module(x_adv))

        return loss
