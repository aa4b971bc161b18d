"""A model left in training mode answers for the whole batch, or at random, and the rest of a run would not notice: it sets eval mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from firedoor import device, guard, seed
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["EvalMode"]

IMAGES = 8  # one call shows whether a forward pass changes modes


@dataclass(frozen=True)
class EvalMode:
    """A1: modules in training mode as the model was handed over, or that one call puts into it. fail: any.

    A model that means to draw dropout at inference fails too: everything else is measured in eval mode, so it must draw in its
    forward pass, and be declared stochastic.

    Family: preflight.
    Reference: Ioffe & Szegedy 2015, sec. 3.1, arXiv:1502.03167.
    """

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the modules of `model`; n counts modules, not images."""
        if not isinstance(model, nn.Module):
            text = f"a {type(model).__name__} has no modes to look at"
            return Symptom("A1", "eval mode", "void", "not_run", text, threshold=0)
        modes = {name or "itself": m.training for name, m in model.named_modules()}  # before the guard sets eval mode
        few = split[slice(0, IMAGES)]
        with guard.no_side_effects(model), seed.streams(0, few.ids, purpose="A1"), torch.no_grad():
            model(few.x.to(device.current(), copy=True))
            changed = [name or "itself" for name, m in model.named_modules() if m.training]
        training = [name for name, on in modes.items() if on]
        found = training + [name for name in changed if name not in training]
        text = f"in eval mode: {len(modes)} modules, before and after a call"
        if found:
            when = f"{len(training)} of {len(modes)} modules are training, {len(changed)} start to when called"
            text = f"not in eval mode: the answer depends on batch mates ({when}: {', '.join(found[:3])})"
        return Symptom("A1", "eval mode", "void", "fail" if found else "pass", text, len(found), 0, len(modes))

    def passes(self, n: int) -> int:
        """One call of a few images."""
        return min(n, IMAGES)
