"""The training loop, the only one. What it minimises, and every attack or teacher that needs, arrives as a field.

Batches, augmentation and random starts are keyed by example, epoch and seed, so the same recipe gives the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor import device
from firedoor import seed as seeds
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Batch, BatchLoss, Split, Store

__all__ = ["Fit", "Training", "Watching"]

WARM_UP = 0.25  # share of a one-cycle schedule in which lr rises


@dataclass(frozen=True)
class Training:
    """What a training gave.

    members: state dicts, one per cosine cycle, else the final one alone; passes: forward+backward passes per training example and
    epoch of the recipe, inner attacks included, so 1.0 for plain training, and less where training stopped early; seconds: wall time.
    """

    members: list[dict[str, Tensor]]
    passes: float
    seconds: float


@runtime_checkable
class Watching(Protocol):
    """A live loss that looks at the network after each epoch, in training mode, and may put earlier weights back."""

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor: ...
    def epoch_end(self, module: nn.Module, epoch: int) -> bool: ...  # True ends the training with the weights as they now are


@dataclass(frozen=True)
class Fit:
    """Minimises a batch loss by stochastic gradient descent.

    Schedules: one-cycle rises linearly to lr and falls by a cosine to 0; constant; cosine-cycles restarts a falling cosine `cycles`
    times and keeps a snapshot of each (Huang et al. 2017, arXiv:1704.00109). `augment`: shift by up to an eighth of the side with
    zero padding, and a horizontal flip. `average_from`: from that share of training on, the weights and normalisation statistics at
    the end of each epoch are averaged (Izmailov et al. 2018, arXiv:1803.05407). `clip_gradient`: largest norm of the gradient.

    Family: training. Year: 2017.
    Reference: Smith and Topin 2017, arXiv:1708.07120.
    """

    loss: BatchLoss = field(default_factory=CrossEntropy)
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimiser: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["one-cycle", "constant", "cosine-cycles"] = "one-cycle"
    cycles: int = 1
    augment: Literal["none", "shift", "shift-flip"] = "none"
    average_from: float | None = None
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs must be 1 or more", self.epochs, "Train for at least one epoch.")
        _require(self.batch_size >= 2, "batch_size must be 2 or more", self.batch_size, "Batch statistics need two examples.")
        _require(self.lr > 0, "lr must be positive", self.lr, "Try 0.1 for sgd, 0.001 for adamw.")
        _require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum, "Try 0.9.")
        _require(self.weight_decay >= 0, "weight_decay must be 0 or more", self.weight_decay, "Try 5e-4.")
        _require(self.optimiser in ("sgd", "adamw"), "optimiser must be sgd or adamw", self.optimiser, "Choose one.")
        schedules = ("one-cycle", "constant", "cosine-cycles")
        _require(self.schedule in schedules, f"schedule must be one of {', '.join(schedules)}", self.schedule, "Choose one.")
        _require(
            self.augment in ("none", "shift", "shift-flip"), "augment must be none, shift or shift-flip", self.augment, "Choose."
        )
        _require(self.cycles >= 1, "cycles must be 1 or more", self.cycles, "Use 1 for no restart.")
        _require(
            self.cycles == 1 or self.schedule == "cosine-cycles",
            "more than one cycle needs schedule 'cosine-cycles'",
            self.schedule,
            "Set it, or leave cycles at 1.",
        )
        _require(self.epochs % self.cycles == 0, f"epochs must be a multiple of cycles ({self.cycles})", self.epochs, "Round it.")
        if self.average_from is not None:
            _require(0 < self.average_from <= 1, "average_from must be in (0, 1]", self.average_from, "Try 0.75, or leave it out.")
            _require(self.cycles == 1, "weights are averaged over one cycle only", self.cycles, "Set cycles to 1.")
        if self.clip_gradient is not None:
            _require(self.clip_gradient > 0, "clip_gradient must be positive", self.clip_gradient, "Leave it out for no clipping.")

    def train(
        self,
        module: nn.Module,
        split: Split,
        store: Store,
        seed: int,
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Training:
        """Train `module` in place; it ends in eval mode with frozen parameters. `on_epoch(done, epochs)` follows each epoch.

        Errors: DataError for fewer than two examples, or augmentation of vectors; ModelRefused if the loss is not finite.
        """
        if len(split) < 2:
            raise DataError(f"training needs at least 2 examples, got {len(split)}. Use a larger part of the data.")
        if self.augment != "none" and split.x.dim() != 4:
            raise DataError(
                f"augment {self.augment!r} needs images (c, h, w), got inputs of shape {tuple(split.x.shape[1:])}. Use augment 'none'."
            )
        began = time.perf_counter()
        forwarded = [0]

        def count(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            if torch.is_grad_enabled():
                forwarded[0] += len(inputs[0])

        module.requires_grad_(True)
        hook = module.register_forward_hook(count)
        try:
            with torch.enable_grad(), seeds.forked(seed, "fit"):
                loss = self.loss.start(store, split)
                forwarded[0] = 0
                members, planned = self._epochs(module, split, loss, seed, on_epoch)
        finally:
            hook.remove()
            module.zero_grad(set_to_none=True)
            module.requires_grad_(False)
            module.eval()
        return Training(members, forwarded[0] / planned, time.perf_counter() - began)

    def _epochs(
        self,
        module: nn.Module,
        split: Split,
        loss: Callable[[nn.Module, Batch], Tensor],
        seed: int,
        on_epoch: Callable[[int, int], None] | None,
    ) -> tuple[list[dict[str, Tensor]], int]:
        optimiser = self._optimiser(module)
        n = len(split)
        starts = [i for i in range(0, n, self.batch_size) if n - i > 1]  # one example has no batch statistics
        total, planned, step = self.epochs * len(starts), self.epochs * sum(min(self.batch_size, n - i) for i in starts), 0
        members: list[dict[str, Tensor]] = []
        average = _Average()
        for epoch in range(self.epochs):
            module.train()
            order = torch.from_numpy(seeds.order(n, seed, f"epoch {epoch}"))
            for start in starts:
                rows = order[start : start + self.batch_size]
                ids = [split.ids[int(i)] for i in rows]
                augment = _augment(self.augment, seed, ids, epoch)
                batch = Batch(augment(split.x[rows]), split.y[rows].to(device.current()), ids, epoch, augment)
                rate = self._rate(step, total)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                with seeds.streams(seed, ids, draw=epoch, purpose="fit"):
                    value = loss(module, batch)
                if not math.isfinite(float(value.detach())):
                    raise ModelRefused(
                        f"training needs a finite loss, got {float(value.detach())} in epoch {epoch + 1} at lr {rate:.3g}. "
                        "Lower lr, or set clip_gradient = 1."
                    )
                optimiser.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                if self.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), self.clip_gradient)
                optimiser.step()
                step += 1
            if isinstance(loss, Watching) and loss.epoch_end(module, epoch):
                break
            if self.average_from is not None and epoch + 1 >= self.average_from * self.epochs:
                average.add(module)
            if self.schedule == "cosine-cycles" and (epoch + 1) % (self.epochs // self.cycles) == 0:
                members.append(_state(module))
            if on_epoch is not None:
                on_epoch(epoch + 1, self.epochs)
        if average.count:
            module.load_state_dict(average.state())
            members.clear()
        return members + [_state(module)] * (self.cycles - len(members)), planned

    def _optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        if self.optimiser == "adamw":
            return torch.optim.AdamW(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _rate(self, step: int, total: int) -> float:
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine-cycles":
            length = total // self.cycles
            return self.lr * (1 + math.cos(math.pi * (step % length) / length)) / 2
        share = (step + 0.5) / total
        if share < WARM_UP:
            return self.lr * share / WARM_UP
        return self.lr * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


class _Average:
    """Running sum, in double precision, of the states that training passed through."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def add(self, module: nn.Module) -> None:
        self.count += 1
        self.last = _state(module)
        for name, value in self.last.items():
            if value.is_floating_point():
                self.sums[name] = self.sums[name] + value.double() if name in self.sums else value.double()

    def state(self) -> dict[str, Tensor]:
        return {k: (self.sums[k] / self.count).to(v.dtype) if k in self.sums else v for k, v in self.last.items()}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _augment(kind: str, seed: int, ids: Sequence[str], epoch: int) -> Callable[[Tensor], Tensor]:
    """A function that gives example i the same draw each time it is called: images and their stored crafts move together."""

    def augment(x: Tensor) -> Tensor:
        if kind == "none":
            return x.to(device.current())
        with seeds.streams(seed, ids, draw=epoch, purpose="augment"):
            moved = _shift(x)
            return (_flip(moved) if kind == "shift-flip" else moved).to(device.current())

    return augment


def _shift(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    up, left = max(1, h // 8), max(1, w // 8)
    rows = seeds.integers(x, 2 * up + 1)[:, None] + torch.arange(h)
    columns = seeds.integers(x, 2 * left + 1)[:, None] + torch.arange(w)
    padded = F.pad(x, (left, left, up, up))
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(c)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _flip(x: Tensor) -> Tensor:
    turn = seeds.integers(x, 2).bool()
    return torch.where(turn[:, None, None, None], x.flip(3), x)


def _require(holds: bool, needed: str, got: object, do: str) -> None:
    if not holds:
        raise SpecError(f"Fit: {needed}, got {got!r}. {do}")
