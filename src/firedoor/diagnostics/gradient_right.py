"""A backward pass that is not the slope of the forward pass sends every gradient attack the wrong way."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor import device, guard, losses, seed
from firedoor.diagnostics.outcomes import ids_of
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["GradientRight"]

STEPS = (1 / 32, 1 / 8, 1 / 3)  # root mean square of hu, in 8-bit levels: too short for curvature, too long to stay between stairs
ROUNDING = 16  # units in the last place of a logit


@dataclass(frozen=True)
class GradientRight:
    """A8: the input gradient of the margin, against central differences.

    Per image, the median of |(f(x+hu) - f(x-hu)) / 2h - g.u| / (|g.u| + 1e-8) over `directions` random unit vectors u and g / |g|,
    each at its best h, so that a kink in the way does no harm; the image is wrong if it is over `error`. suspect: any image; fail:
    the lower bound of their share is over `share`. In float64 where the module can be copied to it; else what float32 rounding
    explains is taken off. x is moved off the rim of the box and off exact ties first. Images where neither the gradient nor the
    function changes are not judged. A backward pass that is declared straight-through is exempt: do not ask.

    Family: gradient masking.
    Reference: Athalye et al. 2018, sec. 3 (shattered gradients), arXiv:1802.00420.
    """

    error: float = 0.1
    share: float = 0.01
    directions: int = 16
    images: int = 64

    def __post_init__(self) -> None:
        for name in ("error", "share"):
            if not 0 < getattr(self, name) < 1:
                raise SpecError(f"GradientRight: {name} must be in (0, 1), got {getattr(self, name)}. Try 0.1 and 0.01.")
        for name in ("directions", "images"):
            if getattr(self, name) < 1:
                raise SpecError(f"GradientRight: {name} must be 1 or more, got {getattr(self, name)}. Try 16 and 64.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the first `images` of `split` that can be judged."""
        few = split[slice(0, self.images)]
        if not len(few):
            return self._not_run("there is no image to ask about")
        with guard.no_side_effects(model):
            twin = _in_float64(model, few)
            found = self._errors(model if twin is None else twin, few, torch.float32 if twin is None else torch.float64)
        if found is None:
            return self._not_run("a margin needs two classes")
        judged = ~torch.isnan(found)
        n, wrong = int(judged.sum()), judged & (found > self.error)
        if not n:
            return self._not_run("neither the gradient nor the function changes on any image")
        share = clopper_pearson(int(wrong.sum()), n)
        status = "fail" if share.low > self.share else "suspect" if share.value else "pass"
        text = f"gradient disagrees with the function on {int(wrong.sum())} of {n} images" if share.value else "gradients are right"
        text += (
            f" (median error {float(found[judged].median()):.1e}, {'float32' if twin is None else 'float64'}, {n} images judged)"
        )
        ids = ids_of(few, wrong)
        return Symptom("A8", "gradient is right", "mask", status, text, share.value, self.share, n, share.low, share.high, ids)

    def passes(self, n: int) -> int:
        """One gradient, two answers per direction and step, and two to see that the copy is one."""
        return min(n, self.images) * (2 + 2 * (self.directions + 1) * len(STEPS) + 2)

    def _not_run(self, why: str) -> Symptom:
        return Symptom("A8", "gradient is right", "mask", "not_run", why, threshold=self.share)

    def _errors(self, model: Classifier, split: Split, dtype: torch.dtype) -> Tensor | None:
        """(n,) the median error of each image: inf if it is not finite, nan if it cannot be judged. None: no margin."""
        x, y = _inside(split).to(device.current(), dtype), split.y.to(device.current())
        logits, g = _gradient(model, x, y, split.ids)
        if logits.dim() != 2 or logits.shape[1] < 2:
            return None
        noise = ROUNDING * torch.finfo(logits.dtype).eps * logits.double().abs().amax(1)
        errors = [self._error(model, x, y, split.ids, g, u, noise) for u in self._unit_vectors(g, split.ids)]
        each = torch.stack(errors)
        median = each.nanmedian(0).values
        known = (~torch.isnan(each)).sum(0) > self.directions / 2
        median = torch.where(known, median, torch.full_like(median, torch.nan))
        broken = ~torch.isfinite(g).flatten(1).all(1) | ~torch.isfinite(logits).all(1)
        return torch.where(broken, torch.full_like(median, torch.inf), median).cpu()

    def _unit_vectors(self, g: Tensor, ids: tuple[str, ...]) -> list[Tensor]:
        with seed.streams(0, ids, purpose="A8 directions"):
            return [_unit(seed.normal(g)) for _ in range(self.directions)] + [_unit(g)]

    def _error(self, model: Classifier, x: Tensor, y: Tensor, ids: tuple[str, ...], g: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """(n,) error along u at the best h; nan where rounding hides both slopes at every h."""
        along = (g * u).double().flatten(1).sum(1)
        best = torch.full_like(along, torch.nan)
        for h in (step / 255 * math.sqrt(x[0].numel()) for step in STEPS):
            with torch.no_grad():
                rise = _margin(model, x + h * u, y, ids)[1] - _margin(model, x - h * u, y, ids)[1]
            slope, unsure = rise / (2 * h), noise / h
            error = ((slope - along).abs() - unsure).clamp_min(0) / (along.abs() + 1e-8)
            error = error.nan_to_num(nan=math.inf)
            judged = ~(torch.maximum(slope.abs(), along.abs()) <= 2 * unsure)  # nan is judged
            best = torch.where(judged, torch.fmin(best, error), best)
        return best


def _inside(split: Split) -> Tensor:
    """x less the rim of the box, and off exact ties: equal neighbours under a max pool are a kink at any h."""
    with seed.streams(0, split.ids, purpose="A8 inside"):
        return 0.98 * split.x + 0.01 + seed.uniform(split.x, -0.005, 0.005)


def _margin(model: Classifier, x: Tensor, y: Tensor, ids: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(logits, margin in float64 (n,)); every call sees the same draws."""
    with seed.streams(0, ids, purpose="A8"), guard.keyed_generators(x, "A8"):
        logits = model(x)
    many = logits.dim() == 2 and logits.shape[1] > 1
    return logits, losses.margin(logits, y).double() if many else logits.new_zeros(len(x))


def _gradient(model: Classifier, x: Tensor, y: Tensor, ids: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(logits, gradient of the margin at x); a gradient that is missing is zero."""
    x = x.clone().requires_grad_(True)
    logits, margin = _margin(model, x, y, ids)
    g = torch.autograd.grad(margin.sum(), x, allow_unused=True)[0] if margin.requires_grad else None
    return logits.detach(), torch.zeros_like(x) if g is None else g.detach()


def _unit(v: Tensor) -> Tensor:
    length = v.double().flatten(1).square().sum(1).sqrt().clamp_min(1e-300)
    return (v.double() / length.view(-1, *[1] * (v.dim() - 1))).to(v.dtype)


def _in_float64(model: Classifier, split: Split) -> nn.Module | None:
    """A copy of the module that computes the same in float64, or None."""
    if not isinstance(model, nn.Module):
        return None
    x, y = _inside(split).to(device.current()), split.y.to(device.current())
    try:
        twin = copy.deepcopy(model).double()
        with torch.no_grad():
            fine, plain = _margin(twin, x.double(), y, split.ids)[0], _margin(model, x, y, split.ids)[0].double()
    except Exception:  # whatever a stranger's module raises: it is then judged in float32
        return None
    if fine.dtype != torch.float64 or fine.shape != plain.shape:
        return None
    agree = (fine - plain).abs().amax() <= 0.01 * plain.abs().amax()  # nan does not agree
    return twin if bool(agree) else None
