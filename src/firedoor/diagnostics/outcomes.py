"""Which examples a live model knows, and which of them an attack takes from it: what every sign here counts."""

from __future__ import annotations

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.craft import predict
from firedoor.protocols import Attack, Classifier, Split

__all__ = ["attacked", "fooled", "ids_of", "known", "passes_of"]

BATCH = 125
SHOWN = 20  # example ids that a symptom carries


def known(model: Classifier, split: Split) -> Split:
    """The examples that the model gets right."""
    return _rows(split, predict(model, split.x, split.ids, 0) == split.y)


def attacked(model: Classifier, attack: Attack, split: Split, purpose: str) -> Tensor:
    """x_adv (n, *shape) on the CPU as it would be stored: rounded to 8 bits where all of x is, and checked against the budget.

    `purpose` (the test's id) keys the random streams. Errors: BudgetError; what the attack and the model raise.
    """
    found = []
    for i in range(0, len(split), BATCH):
        batch = split[slice(i, i + BATCH)]
        with guard.no_side_effects(model), seed.streams(0, batch.ids, purpose=purpose):
            found.append(attack(model, batch.x.to(device.current()), batch.y.to(device.current())).cpu())
    x_adv = torch.cat(found) if found else split.x
    if bool(((255 * split.x).round() / 255 == split.x).all()):
        return attack.threat.to_8bit(x_adv, split.x).float() / 255
    attack.threat.check(x_adv, split.x)
    return x_adv


def fooled(model: Classifier, attack: Attack, split: Split, purpose: str, draw: int = 1) -> Tensor:
    """(n,) true where the model's label for x_adv is not y. Answers that are not finite count as unfooled."""
    label = predict(model, attacked(model, attack, split, purpose), split.ids, 0, draw)
    return (label != split.y) & (label >= 0)


def ids_of(split: Split, mask: Tensor) -> tuple[str, ...]:
    """The ids of the first examples where `mask` is true."""
    return tuple(split.ids[i] for i in mask.nonzero()[:SHOWN, 0].tolist())


def passes_of(attack: Attack) -> int:
    """Passes of one example, forward or backward, that the attack takes at most."""
    return 2 * attack.gradients + attack.queries


def _rows(split: Split, mask: Tensor) -> Split:
    return Split(split.x[mask], split.y[mask], tuple(i for i, kept in zip(split.ids, mask.tolist(), strict=True) if kept))
