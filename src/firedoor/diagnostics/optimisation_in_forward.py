"""A forward pass that takes gradients of its own adapts to what it is shown; a fixed attack on it measures little."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.variable import Variable

from firedoor import device, guard, seed
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Split, Symptom

__all__ = ["OptimisationInForward"]

TORCH: Any = Variable  # every backward pass that is asked for in Python goes through its engine
DUAL: Any = forward_ad  # and every forward-mode derivative through its `make_dual`


@dataclass(frozen=True)
class OptimisationInForward:
    """A5: gradient calls seen while the model answers, without and with gradients switched on around it. fail: any.

    Sees backward, autograd.grad, torch.func and forward mode, whoever calls them. Blind to loops in compiled code, and to searches
    that take no gradient.

    Family: preflight.
    Reference: Croce et al. 2022, arXiv:2202.13711.
    """

    images: int = 32

    def __post_init__(self) -> None:
        if self.images < 1:
            raise SpecError(f"OptimisationInForward: images must be 1 or more, got {self.images}. Try 32.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over the first `images` of `split`."""
        few, n = split[slice(0, self.images)], min(len(split), self.images)
        if not n:
            return Symptom("A5", "optimisation in forward", "cap", "not_run", "there is no image to ask about", threshold=0)
        seen = 0
        with guard.no_side_effects(model):
            for on in (False, True):  # as it is scored, and as it is attacked
                x = few.x.to(device.current(), copy=True).requires_grad_(on)
                with seed.streams(0, few.ids, purpose="A5"), torch.set_grad_enabled(on), _counted() as calls:
                    model(x)
                seen += len(calls)
        text = f"dynamic defence: needs an adaptive attack ({seen} gradient calls in two forward passes of {n} images)"
        if not seen:
            text = f"no gradient is taken inside a forward pass ({n} images)"
        return Symptom("A5", "optimisation in forward", "cap", "fail" if seen else "pass", text, seen, 0, n)

    def passes(self, n: int) -> int:
        """Two answers."""
        return 2 * min(n, self.images)


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Within this context, one entry per gradient call of this thread, or of one that it starts. Guarded threads take turns."""
    calls: list[str] = []
    others = {t.ident for t in threading.enumerate()} - {threading.get_ident()}  # training something else, perhaps
    engine, make_dual = TORCH._execution_engine, DUAL.make_dual

    def note(what: str) -> None:
        if threading.get_ident() not in others:
            calls.append(what)

    def make_dual_and_note(*arguments: Any, **named: Any) -> Any:
        note("forward mode")
        return make_dual(*arguments, **named)

    TORCH._execution_engine, DUAL.make_dual = _Engine(engine, note), make_dual_and_note
    try:
        yield calls
    finally:
        TORCH._execution_engine, DUAL.make_dual = engine, make_dual


class _Engine:
    """Torch's engine, which says when it runs."""

    def __init__(self, engine: Any, note: Any) -> None:
        self._engine, self._note = engine, note

    def run_backward(self, *arguments: Any, **named: Any) -> Any:
        self._note("backward")
        return self._engine.run_backward(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
