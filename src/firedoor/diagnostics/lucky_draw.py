"""Against a random model an attack can stop at a lucky draw; asked again, the model is right."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firedoor import device, guard, seed
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import BATCH, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import Z, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["LuckyDraw"]


@dataclass(frozen=True)
class LuckyDraw:
    """B15: success of the points that `attack` chose, as it saw it, minus their success in `draws` fresh draws of the model.

    What the attack saw: the last answer it got at the very point that it returned. Where it never asked there, a first fresh draw
    stands for it. Points are judged as returned: what rounding does to them is another test. fail: the difference is over `most`,
    and more than chance against a single fresh draw (exact one-sided McNemar test p < .01, at least 8 discordant images), since
    honest noise alone moves the rate of few images by more than a point. not_run: no image is known, or no success was seen.
    Errors: SpecError for the fields and for a targeted attack; BudgetError if the attack leaves its budget.

    Family: attack health.
    Reference: Carlini et al. 2019 (randomised defences), arXiv:1902.06705.
    """

    attack: Attack
    draws: int = 10
    most: float = 0.01

    def __post_init__(self) -> None:
        need_attacks("LuckyDraw: attack", (self.attack,))
        if self.draws < 1:
            raise SpecError(f"LuckyDraw: draws must be 1 or more, got {self.draws}. Try 10.")
        if not 0 <= self.most < 1:
            raise SpecError(f"LuckyDraw: most must be in [0, 1), got {self.most}. Try 0.01.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("B15", "lucky draw", "cap", "not_run", "the model gets no image right, so nothing can be broken")
        kept = known(model, split)
        n = len(kept)
        if not n:
            return sign
        x_adv, seen = _chosen(model, self.attack, kept)
        with guard.no_side_effects(model):
            labels = torch.stack([predict(model, x_adv, kept.ids, 0, draw) for draw in range(1, self.draws + 2)])
        wrong = (labels != kept.y) & (labels >= 0)
        claimed = torch.where(seen == UNASKED, wrong[0], (seen != kept.y) & (seen >= 0))
        if not bool(claimed.any()):
            return replace(sign, text="the attack saw no success, so there is none to judge again", n=n)
        difference = claimed.float() - wrong[1:].float().mean(0)
        value, half = float(difference.mean()), Z * float(difference.std(correction=0)) / math.sqrt(n)
        lucky = claimed & ~wrong[1]
        fails = value > self.most and significant(int(lucky.sum()), int((~claimed & wrong[1]).sum()), n)
        again = float(wrong[1:].float().mean())
        rates = f"{float(claimed.float().mean()):.1%} when chosen, {again:.1%} in {self.draws} fresh draws ({n} images)"
        text = f"one lucky draw counted as success: {rates}" if fails else f"success {rates}"
        ids = ids_of(kept, lucky) if fails else ()
        status = "fail" if fails else "pass"
        return Symptom("B15", "lucky draw", "cap", status, text, value, self.most, n, value - half, value + half, ids)

    def passes(self, n: int) -> int:
        """One clean answer, the attack, and the draws with the first one."""
        return n * (2 + passes_of(self.attack) + self.draws)


UNASKED = -2  # beside -1, the label of an answer that is not finite


def _chosen(model: Classifier, attack: Attack, split: Split) -> tuple[Tensor, Tensor]:
    """(x_adv as returned, the last label that the attack saw at that point or UNASKED)."""
    found, seen = [], []
    for i in range(0, len(split), BATCH):
        batch = split[slice(i, i + BATCH)]
        labels: dict[bytes, int] = {}
        with guard.no_side_effects(model), seed.streams(0, batch.ids, purpose="B15"), _watched(model, labels) as watched:
            found.append(attack(watched, batch.x.to(device.current()), batch.y.to(device.current())).detach().cpu())
        attack.threat.check(found[-1], batch.x)
        seen += [labels.get(key, UNASKED) for key in _keys(found[-1])]
    return torch.cat(found), torch.tensor(seen)


@contextmanager
def _watched(model: Classifier, labels: dict[bytes, int]) -> Iterator[Classifier]:
    """The model, with the label of its last answer to each point kept in `labels`. The hook is gone before the guard looks."""

    def keep(x: Tensor, logits: Tensor) -> None:
        finite = torch.isfinite(logits.detach()).all(1)
        label = torch.where(finite, logits.detach().argmax(1), -1)
        labels.update(zip(_keys(x), label.tolist(), strict=True))

    if isinstance(model, nn.Module):  # a hook, so that an attack which looks inside finds the layers where they were
        handle = model.register_forward_hook(lambda _module, inputs, output: keep(inputs[0], output))
        try:
            yield model
        finally:
            handle.remove()
        return

    def asked(x: Tensor) -> Tensor:
        logits = model(x)
        keep(x, logits)
        return logits

    yield asked


def _keys(x: Tensor) -> list[bytes]:
    """A digest of each row's pixels."""
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pixels]
