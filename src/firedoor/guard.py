"""Leave a model as it was: modes, gradients, buffers, layers, hooks, flags and random state, also after an exception.

What code that is not ours gets to see of a model, and from which numbers it draws, is decided here too.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.errors import ModelRefused, UsageError
from firedoor.protocols import Classifier

__all__ = ["AsModule", "keyed_generators", "no_side_effects", "shell"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
DEVICES = ("cpu", "cuda")  # whose autocast is switched off
BACKENDS: Any = torch.backends
FLAGS = (
    (BACKENDS.cuda.matmul, "fp32_precision"),  # TF32 and its like
    (BACKENDS.cudnn.conv, "fp32_precision"),
    (BACKENDS.mkldnn.matmul, "fp32_precision"),
    (BACKENDS.mkldnn.conv, "fp32_precision"),
    (BACKENDS.cudnn, "deterministic"),
    (BACKENDS.cudnn, "benchmark"),
)
_ALONE = threading.RLock()  # modes, generators and flags are of the whole process, so guarded threads take turns
COPY = "Attack a copy, or stop the model from training itself."
LAYERS = "Attack a copy, or put every module back in a `finally`."


@contextmanager
def no_side_effects(model: Classifier) -> Iterator[None]:
    """Inside: eval mode, frozen parameters, gradients on, autocast off. Afterwards: everything as before.

    Errors: UsageError inside `torch.inference_mode()`; ModelRefused, naming the modules, if weights, layers, a layer's `forward` or
    hooks were changed meanwhile, or if it called sys.exit. All but the numbers in changed weights is put back first.
    Threads take turns: modes, generators and flags belong to the whole process.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError("An attack needs gradients, but torch.inference_mode() is on. Use torch.no_grad(), or no context.")
    with _ALONE:
        yield from _guarded(model)


def _guarded(model: Classifier) -> Iterator[None]:
    named = list(model.named_modules()) if isinstance(model, nn.Module) else []
    layers = [_Layer(path, m) for path, m in named]
    weights = [_Weight(path, m, name, p) for path, m in named for name, p in m._parameters.items() if p is not None]
    buffers = [(m, name, b, b.detach().clone()) for _, m in named for name, b in m._buffers.items() if b is not None]
    settings, states = _settings(), _generators()
    try:
        for kind in DEVICES:
            torch.set_autocast_enabled(kind, False)
        for m in (m for _, m in named):
            m.training = False
        for w in weights:
            w.parameter.requires_grad_(False)
            w.parameter.grad = None  # a backward pass adds to a gradient in place
        with torch.enable_grad():
            yield
    except SystemExit as error:
        raise ModelRefused(f"The model tried to end the program (SystemExit: {error.code}). Remove sys.exit from it.") from None
    finally:
        _set_generators(states)
        _set(settings)
        complaint = _complaint(weights, layers)
        for layer in layers:
            layer.put_back()
        for m, name, b, before in buffers:
            m._buffers[name] = b
            if not _same(b, before):
                b.copy_(before)
        for w in weights:
            w.put_back()
    if complaint:
        raise ModelRefused(complaint)


@contextmanager
def keyed_generators(x: Tensor, purpose: str) -> Iterator[None]:
    """Inside, the global generators of torch, numpy and Python depend on the streams of `seed` and on `purpose` alone.

    For code that draws from them, inside `no_side_effects`, which puts them back. One key for the whole batch.
    """
    drawn = seed.integers(x, 2**31).cpu().numpy().tobytes()
    words = np.frombuffer(hashlib.shake_256(purpose.encode() + drawn).digest(4 * 624), dtype=np.uint32)
    np.random.set_state(("MT19937", words, 624, 0, 0.0))
    random.setstate((3, (*map(int, words), 624), None))
    with seed.forked(int(words[0]), purpose):
        yield


class AsModule(nn.Module):
    """A classifier as foreign code wants it: a network with a parameter that tells the device, and nothing else to lay hands on.

    `forward_rows`, `backward_rows`: examples that went through so far. More than `most` forward are refused: a declared cost is
    kept, and a search that would never end does end.
    """

    def __init__(self, ask: Classifier, most: int | None, device: torch.device) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0, dtype=torch.float32, device=device), requires_grad=False)
        self.most, self.forward_rows, self.backward_rows = most, 0, 0
        self.ask: Classifier = lambda x: ask(x)  # behind a function, so that no .train() or .to() reaches the network

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) of any dtype to logits (n, k), both float32 for the model and for the caller."""
        self.forward_rows += len(x)
        if self.most is not None and self.forward_rows > self.most:
            raise UsageError(
                f"The attack must send {self.most} rows through the model at most, as declared, and wants more. "
                "Declare what it costs, or give it fewer steps."
            )
        logits: Tensor = self.ask(x.to(self.anchor.dtype, copy=True)).to(self.anchor.dtype)  # a copy: models may write to x
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, g: Tensor) -> None:
        self.backward_rows += len(g)


def shell(model: Classifier, most: int | None = None, device: torch.device | None = None) -> AsModule:
    """`model` for foreign code, in eval mode: see `AsModule`. `device`: where it computes; that of its first parameter by default."""
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
    as_module = AsModule(model, most, device)
    as_module.training = False
    return as_module


class _Layer:
    """A module as it was found; what it holds is compared by identity."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module, self.training = path or "itself", module, module.training
        self.children, self.forward, self.hooks = _children(module), module.__dict__.get("forward"), _hooks(module)

    def put_back(self) -> None:
        self.module.training = self.training
        if _children(self.module) != self.children:
            self.module._modules.clear()
            self.module._modules.update(self.children)
        if self.module.__dict__.get("forward") is not self.forward:
            self.module.__dict__.pop("forward", None)
            if self.forward is not None:
                self.module.__dict__["forward"] = self.forward
        if _hooks(self.module) != self.hooks:
            for name, before in zip(HOOKS, self.hooks, strict=True):
                now = getattr(self.module, name)
                now.clear()
                now.update(before)


class _Weight:
    """A parameter as it was found, and where."""

    def __init__(self, path: str, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        self.path, self.module, self.name, self.parameter = f"{path}.{name}".lstrip("."), module, name, parameter
        self.learns, self.grad = parameter.requires_grad, parameter.grad
        self.version, self.place, self.bits = parameter._version, parameter.data_ptr(), _bits(parameter)

    def touched(self) -> bool:
        p = self.parameter
        moved = self.module._parameters.get(self.name) is not p or p._version != self.version or p.data_ptr() != self.place
        return moved or _bits(p) != self.bits  # a write through p.data counts nowhere else

    def put_back(self) -> None:
        self.module._parameters[self.name] = self.parameter
        self.parameter.requires_grad_(self.learns)
        self.parameter.grad = self.grad


def _complaint(weights: list[_Weight], layers: list[_Layer]) -> str:
    """What was changed that must not be, by name; '' if nothing."""
    touched = [w.path for w in weights if w.touched()]
    if not touched and sum(p is not None for x in layers for p in x.module._parameters.values()) != len(weights):
        touched = ["a parameter was added"]
    if touched:
        return f"The model's weights changed while it was attacked: {_names(touched)}. {COPY}"
    if changed := [x.path for x in layers if _children(x.module) != x.children]:
        return f"The model's layers changed while it was attacked, in: {_names(changed)}. {LAYERS}"
    if changed := [x.path for x in layers if x.module.__dict__.get("forward") is not x.forward]:
        return f"The model's forward changed while it was attacked, of: {_names(changed)}. {LAYERS}"
    if changed := [x.path for x in layers if _hooks(x.module) != x.hooks]:
        text = "were added to the model and not removed" if _more(layers) else "were taken from the model or exchanged"
        return f"Hooks {text}, at: {_names(changed)}. Remove every handle of your own in a `finally`, and no other."
    return ""


def _more(layers: list[_Layer]) -> bool:
    return sum(len(h) for x in layers for h in _hooks(x.module)) > sum(len(h) for x in layers for h in x.hooks)


def _names(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _children(module: nn.Module) -> tuple[tuple[str, nn.Module | None], ...]:
    return tuple(module._modules.items())


def _hooks(module: nn.Module) -> tuple[tuple[tuple[int, Any], ...], ...]:
    return tuple(tuple(getattr(module, name).items()) for name in HOOKS)


def _settings() -> tuple[Any, ...]:
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = [getattr(backend, name) for backend, name in FLAGS]
    return torch.get_default_dtype(), [torch.is_autocast_enabled(kind) for kind in DEVICES], deterministic, flags


def _set(settings: tuple[Any, ...]) -> None:
    dtype, autocast, (deterministic, warn_only), flags = settings
    torch.set_default_dtype(dtype)
    for kind, enabled in zip(DEVICES, autocast, strict=True):
        torch.set_autocast_enabled(kind, enabled)
    if _settings() != settings:  # the others are set only where they differ: some warn when they are
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for (backend, name), value in zip(FLAGS, flags, strict=True):
            if getattr(backend, name) != value:
                setattr(backend, name, value)


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.random.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def _set_generators(states: tuple[Any, ...]) -> None:
    torch.random.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


def _bits(p: Tensor) -> int:
    """The sum of the weights' bit patterns as whole numbers: no write leaves it as it was, but for a rare accident."""
    if not p.numel() or p.is_complex() or p.layout is not torch.strided or p.is_meta:
        return 0
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(p.detach().contiguous().view(kinds[p.element_size()]).sum(dtype=torch.int64))


def _same(now: Tensor, before: Tensor) -> bool:
    return now.shape == before.shape and bool(torch.equal(now, before))
