"""An answer that depends on who else is in the batch has no example of its own: its accuracy, and its robustness, can be arranged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor import device, guard, seed
from firedoor.diagnostics.outcomes import ids_of
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["BatchInvariance"]


@dataclass(frozen=True)
class BatchInvariance:
    """A3: logits of an image alone, in a batch, and shuffled among other mates. fail: a label flips, or the drift is over `drift`.

    The drift is the largest difference of a logit, over the largest logit of its row where that is more than 1: rounding grows with it.
    The model is asked in the modes in which it came. One that draws outside the streams of `seed` is not run: see A2.

    Family: preflight.
    Reference: Ioffe & Szegedy 2015, sec. 3.1, arXiv:1502.03167.
    """

    drift: float = 1e-3
    images: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.drift < math.inf:
            raise SpecError(f"BatchInvariance: drift must be positive, got {self.drift}. Try 1e-3.")
        if self.images < 2:
            raise SpecError(f"BatchInvariance: images must be 2 or more, got {self.images}. Try 64.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the first `images` of `split`."""
        few, n = split[slice(0, self.images)], min(len(split), self.images)
        if n < 2:
            return self._symptom("not_run", "one image has no batch mates", None, n)
        rows, mixed = list(range(n)), seed.order(n, 0, "A3").tolist()
        with _as_found(model):
            batch, again, shuffled = (
                _asked(model, few, rows, n),
                _asked(model, few, rows, n),
                _asked(model, few, mixed, (n + 1) // 2),
            )
            if bool(self._differs(batch, again).any()):
                return self._symptom("not_run", "the same batch gets other answers when asked again: see A2", None, n)
            try:
                alone = _asked(model, few, rows, 1)
            except Exception as error:  # whatever a stranger's module raises: it answered the batch, and refuses one of its images
                text = f"prediction depends on batch mates: an image alone gets no answer ({type(error).__name__})"
                return self._symptom("fail", text, None, n)
        if not bool(torch.isfinite(batch).all(1).any()):
            return self._symptom("not_run", "no answer is finite", None, 0)
        flips = _flips(batch, alone) | _flips(batch, shuffled)
        drift = torch.maximum(_drift(batch, alone), _drift(batch, shuffled))
        bad = self._differs(batch, alone) | self._differs(batch, shuffled)
        found = f"{int(flips.sum())} of {n} labels flip, logits drift by up to {float(drift.max()):.1e}"
        text = (
            f"prediction depends on batch mates: {found}" if bool(bad.any()) else f"answers do not depend on batch mates: {found}"
        )
        status = "fail" if bool(bad.any()) else "pass"
        return self._symptom(status, text, float(drift.max()), n, ids_of(few, bad))

    def passes(self, n: int) -> int:
        """Alone, in a batch twice, and shuffled."""
        return 4 * min(n, self.images)

    def _differs(self, a: Tensor, b: Tensor) -> Tensor:
        return _flips(a, b) | (_drift(a, b) > self.drift)

    def _symptom(self, status: str, text: str, value: float | None, n: int, ids: tuple[str, ...] = ()) -> Symptom:
        return Symptom("A3", "batch invariance", "void", status, text, value, self.drift, n, examples=ids)


@contextmanager
def _as_found(model: Classifier) -> Iterator[None]:
    """Guarded, but in the modes that the model came in: batch norm in training mode is what this test is after."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    with guard.no_side_effects(model):
        for m, training in modes:
            m.training = training
        yield


@torch.no_grad()
def _asked(model: Classifier, split: Split, order: Sequence[int], size: int) -> Tensor:
    """(n, k) logits, asked `size` at a time in that order, and put back in the order of the split."""
    given = []
    for i in range(0, len(order), size):
        rows = list(order[i : i + size])
        with seed.streams(0, [split.ids[r] for r in rows], purpose="A3"):
            given.append(model(split.x[rows].to(device.current())).cpu())
    logits = torch.cat(given).double()
    return logits[torch.tensor(order).argsort()]


def _flips(a: Tensor, b: Tensor) -> Tensor:
    finite_a, finite_b = torch.isfinite(a).all(1), torch.isfinite(b).all(1)
    return (finite_a != finite_b) | (finite_a & finite_b & (a.argmax(1) != b.argmax(1)))


def _drift(a: Tensor, b: Tensor) -> Tensor:
    """(n,) largest difference of a logit, relative where logits are large; 0 where either is not finite, which `_flips` sees."""
    scale = torch.maximum(a.abs().amax(1), b.abs().amax(1)).clamp_min(1.0)
    drift = (a - b).abs().amax(1) / scale
    return torch.where(torch.isfinite(drift), drift, torch.zeros_like(drift))
