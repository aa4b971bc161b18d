"""Examples made on a copy with hardly other weights must fool the model itself, unless its images are changed on the way."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firedoor import guard, seed
from firedoor.craft import predict
from firedoor.diagnostics.doubling import need_attacks
from firedoor.diagnostics.outcomes import attacked, ids_of, known, passes_of
from firedoor.errors import SpecError
from firedoor.intervals import LEAST_DISCORDANT, newcombe, significant
from firedoor.protocols import Attack, Classifier, Split, Symptom

__all__ = ["NearCopy"]


@dataclass(frozen=True)
class NearCopy:
    """E2: success on the model of examples made on a copy with weights W + `noise` |W| N(0,1), as a share of white-box success.

    The white box is judged where the attacker sits, with gradients on; the copy's examples the way every target is asked. Both are
    rounded to 8 bits alike. fail: the share is under `share`, and the difference is more than chance (exact one-sided McNemar test
    p < .01, over half a point, at least 8 discordant images). The interval is Newcombe's for the difference, over the white-box rate.
    not_run: the model is no network with parameters, or cannot be copied; no image is known; or the white box fools fewer than 8.
    A random target can fail by its own noise.
    Errors: SpecError for the fields, for a targeted attack, and for one that returns points on the boundary of its source.

    Family: transfer.
    Reference: a control of this project, after Goodfellow et al. 2015, sec. 8 (near weights share their examples), arXiv:1412.6572.
    """

    attack: Attack
    noise: float = 1e-4
    share: float = 0.95

    def __post_init__(self) -> None:
        need_attacks("NearCopy: attack", (self.attack,))
        if not self.attack.semantics.transfers:
            raise SpecError(
                "NearCopy: attack must use its whole budget and return its last or best point, got "
                f"{self.attack.semantics.returned.value!r}. Points on the boundary of the copy say little of the model: use PGD or APGD."
            )
        if not 0 < self.noise < 1:
            raise SpecError(f"NearCopy: noise must be in (0, 1), got {self.noise}. Try 1e-4.")
        if not 0 < self.share <= 1:
            raise SpecError(f"NearCopy: share must be in (0, 1], got {self.share}. Try 0.95.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the images of `split` that the model gets right."""
        sign = Symptom("E2", "near copy", "void", "not_run", "the model gets no image right, so nothing can be broken")
        if not isinstance(model, nn.Module) or not any(p.numel() and p.is_floating_point() for p in model.parameters()):
            return replace(sign, text="the model is no network with parameters, so there is no near copy of it")
        kept = known(model, split)
        n = len(kept)
        if not n:
            return sign
        try:
            near = _near(model, self.noise)
        except Exception as error:  # whatever a foreign module raises when it is copied
            return replace(sign, text=f"the model cannot be copied: {type(error).__name__}: {error}", n=n)
        x_own, x_near = attacked(model, self.attack, kept, "E2"), attacked(near, self.attack, kept, "E2")
        with guard.no_side_effects(model):
            own, other = _wrong(_with_gradients(model), x_own, kept), _wrong(model, x_near, kept)
        lost, gained, white = int((own & ~other).sum()), int((other & ~own).sum()), int(own.sum())
        if white < LEAST_DISCORDANT:
            return replace(sign, text=f"the white box fools {white} of {n} images, and {LEAST_DISCORDANT} are needed", n=n)
        less = newcombe(gained, lost, int((own & other).sum()), int((~own & ~other).sum()))
        value = int(other.sum()) / white
        fails = value < self.share and significant(lost, gained, n)
        counts = f"the near copy's examples fool {int(other.sum())} of {n} images, the white box {white}"
        text = f"pipeline changes images: {counts}" if fails else counts
        low, high = 1 + less.low * n / white, 1 + less.high * n / white
        ids = ids_of(kept, own & ~other) if fails else ()
        return Symptom("E2", "near copy", "void", "fail" if fails else "pass", text, value, self.share, n, max(low, 0.0), high, ids)

    def passes(self, n: int) -> int:
        """One clean answer; the attack on the model and on the copy, and one answer to each."""
        return n * (3 + 2 * passes_of(self.attack))


@torch.no_grad()
def _near(model: nn.Module, noise: float) -> nn.Module:
    """A copy whose weights differ by `noise` of their size; keyed by the name of the parameter."""
    near = copy.deepcopy(model)
    for name, p in near.named_parameters():
        if p.is_floating_point() and p.numel():
            with seed.streams(0, [name], purpose="E2 weights"):
                p.add_(noise * p.abs() * seed.normal(p[None])[0])
    return near


def _with_gradients(model: nn.Module) -> Classifier:
    """The model as an attack sees it, also inside `no_grad`: some answer otherwise when nobody differentiates."""

    def asked(x: Tensor) -> Tensor:
        with torch.enable_grad():
            logits: Tensor = model(x.clone().requires_grad_(True))
        return logits.detach()

    return asked


def _wrong(model: Classifier, x_adv: Tensor, split: Split) -> Tensor:
    """(n,) true where the model's label is not y; answers that are not finite are no success."""
    label = predict(model, x_adv, split.ids, 0, 1)
    return (label != split.y) & (label >= 0)
