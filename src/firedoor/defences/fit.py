"""The training recipe, the only one. What it minimises, and every attack or teacher that needs, arrives as a field.

Batches, augmentation and random starts are keyed by example, epoch and seed, so the same recipe gives the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from firedoor import seed as seeds
from firedoor.defences.augmentation import Augment, choices
from firedoor.defences.early_stopping import EarlyStopping
from firedoor.defences.loop import Loop, Remembering, Watching
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.ranks import PRECISION, Ranks
from firedoor.errors import DataError, SpecError
from firedoor.protocols import BatchLoss, Split, Store, Unfinished

__all__ = ["Fit", "Remembering", "Training", "Watching"]

WARM_UP = 0.25  # share of a one-cycle schedule in which lr rises
DROPS = (0.5, 0.75)  # shares of a step schedule after which lr is a tenth
SCHEDULES = ("one-cycle", "steps", "constant", "cosine-cycles")


@dataclass(frozen=True)
class Training:
    """What a training gave.

    members: state dicts, one per cosine cycle, else the final one alone; passes: forward+backward passes per training example and
    epoch of the recipe, inner attacks included, so 1.0 for plain training, and less where training stopped early; seconds: wall time.
    scores: what early stopping saw, look by look: the best one is that of the outcome, the last one that of the last epoch.
    """

    members: list[dict[str, Tensor]]
    passes: float
    seconds: float
    scores: tuple[float, ...] = ()

    @property
    def record(self) -> dict[str, object]:
        """Plain values to keep beside the weights."""
        plain: dict[str, object] = {"seconds": self.seconds, "passes": self.passes}
        return {**plain, "development": list(self.scores)} if self.scores else plain


@dataclass(frozen=True)
class Fit:
    """Minimises a batch loss by stochastic gradient descent.

    Schedules: one-cycle rises linearly to lr and falls by a cosine to 0; steps divides lr by 10 after half and three quarters of the
    training; constant; cosine-cycles restarts a falling cosine `cycles` times and keeps a snapshot of each (Huang et al. 2017,
    arXiv:1704.00109). `augment`: shift by up to an eighth of the side with zero padding, flip, and kornia's erase, trivial and rand.
    `average_from`: from that share of training on, the weights and normalisation statistics at the end of each epoch are averaged
    (Izmailov et al. 2018, arXiv:1803.05407); `ema`: the decay of an average over all steps. `clip_gradient`: largest norm of the
    gradient. `accumulate`: each batch is taken in so many parts, which costs less memory; their statistics are their own. `replays`:
    each batch is used so many times in a row. `precision`: exact (float32), bf16 or fp16 autocast.
    Not part of the recipe's key: `trackers` of accelerate by name; `checkpoint_seconds` between checkpoints.

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
    schedule: Literal["one-cycle", "steps", "constant", "cosine-cycles"] = "one-cycle"
    cycles: int = 1
    augment: Augment = "none"
    average_from: float | None = None
    ema: float | None = None
    clip_gradient: float | None = None
    accumulate: int = 1
    replays: int = 1
    precision: Literal["exact", "bf16", "fp16"] = "exact"
    early_stopping: EarlyStopping | None = None
    trackers: tuple[str, ...] = field(default=(), metadata={"key": False})
    checkpoint_seconds: float = field(default=60.0, metadata={"key": False})

    def __post_init__(self) -> None:
        for name in ("epochs", "cycles", "accumulate", "replays"):
            _require(getattr(self, name) >= 1, f"{name} must be 1 or more", getattr(self, name), "Use 1 or more.")
        _require(self.batch_size >= 2, "batch_size must be 2 or more", self.batch_size, "Batch statistics need two examples.")
        _require(self.lr > 0, "lr must be positive", self.lr, "Try 0.1 for sgd, 0.001 for adamw.")
        _require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum, "Try 0.9.")
        _require(self.weight_decay >= 0, "weight_decay must be 0 or more", self.weight_decay, "Try 5e-4.")
        for name, allowed in (
            ("optimiser", ("sgd", "adamw")),
            ("schedule", SCHEDULES),
            ("augment", choices()),
            ("precision", tuple(PRECISION)),
        ):
            _require(
                getattr(self, name) in allowed, f"{name} must be one of {', '.join(allowed)}", getattr(self, name), "Choose one."
            )
        _require(
            self.cycles == 1 or self.schedule == "cosine-cycles",
            "more than one cycle needs schedule 'cosine-cycles'",
            self.schedule,
            "Set it, or leave cycles at 1.",
        )
        _require(self.epochs % self.cycles == 0, f"epochs must be a multiple of cycles ({self.cycles})", self.epochs, "Round it.")
        chosen = [name for name in ("average_from", "ema", "early_stopping") if getattr(self, name) is not None]
        _require(
            len(chosen) + (self.cycles > 1) <= 1,
            "only one of average_from, ema, early_stopping and cycles decides which weights come out",
            " and ".join(chosen),
            "Leave one.",
        )
        for name in ("average_from", "ema"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1, f"{name} must be in (0, 1]", value, "Try 0.75, or leave it out.")
        _require(
            self.clip_gradient is None or self.clip_gradient > 0,
            "clip_gradient must be positive",
            self.clip_gradient,
            "Leave it out.",
        )
        _require(self.checkpoint_seconds >= 0, "checkpoint_seconds must be 0 or more", self.checkpoint_seconds, "Try 60.")

    def train(
        self,
        module: nn.Module,
        split: Split,
        store: Store,
        seed: int,
        work: Unfinished | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Training:
        """Train `module` in place; it ends in eval mode with frozen parameters. `on_step(done, steps)` follows each batch.

        With `work`, checkpoints are kept and a training that was killed goes on from the last one, to the same bits on a CPU.
        Errors: DataError for fewer than two examples, or augmentation of vectors; ModelRefused if the loss is not finite; SetupError
        for a precision or tracker that this machine does not have.
        """
        if len(split) < 2:
            raise DataError(f"training needs at least 2 examples, got {len(split)}. Use a larger part of the data.")
        if self.augment != "none" and split.x.dim() != 4:
            raise DataError(
                f"augment {self.augment!r} needs images (c, h, w), got inputs of shape {tuple(split.x.shape[1:])}. Use augment 'none'."
            )
        module.requires_grad_(True)
        loop: Loop | None = None

        def add(passes: float) -> None:
            if loop is not None:
                loop.forwarded += passes

        hooks = counted(module, add)
        ranks = Ranks(self.precision, self.trackers, str(getattr(work, "folder", "")))
        ranks.track("firedoor", {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "seed": seed})
        try:
            with torch.enable_grad(), seeds.forked(seed, "fit"):
                loss = self.loss.start(store, split)
                score = self.early_stopping.start(store) if self.early_stopping is not None else None
                loop = Loop(self, module, split, loss, seed, ranks)
                self._resume(loop, work)
                loop.run(work, score, on_step)
                members = loop.outcome()
        finally:
            for hook in hooks:
                hook.remove()
            module.zero_grad(set_to_none=True)
            module.requires_grad_(False)
            module.eval()
            ranks.close()
        forwarded = ranks.total(loop.forwarded)
        if work is not None and ranks.rank == 0:
            work.note({"event": "end", "step": loop.step, "seconds": loop.seconds, "passes": forwarded / loop.planned})
            work.clear()
        return Training(members, forwarded / loop.planned, loop.seconds, tuple(loop.scores))

    def pace(self, module: nn.Module, split: Split, store: Store, seed: int) -> Callable[[], float]:
        """A function that takes one batch of the last epoch, as `train` would, and gives the passes per example that it took.

        For timing alone: `module` changes, and nothing of it is a training's outcome. Errors: as `train`.
        """
        passes = 0.0

        def add(more: float) -> None:
            nonlocal passes
            passes += more

        module.requires_grad_(True).train()
        counted(module, add)
        loss = self.loss.start(store, split)
        loop = Loop(self, module, split, loss, seed, Ranks(self.precision, (), ""))
        rows = torch.arange(min(self.batch_size, len(split)))

        def step() -> float:
            nonlocal passes
            passes, loop.step = 0.0, loop.total - 1
            with torch.enable_grad(), seeds.forked(seed, "pace"):
                loop.take(rows, self.epochs - 1)
            return passes / len(rows)

        return step

    def optimiser_for(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all weights."""
        if self.optimiser == "adamw":
            return torch.optim.AdamW(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a batch, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "steps":
            drops = sum(step >= share * total for share in DROPS)
            return self.lr * math.pow(0.1, drops)
        if self.schedule == "cosine-cycles":
            length = total // self.cycles
            return self.lr * (1 + math.cos(math.pi * (step % length) / length)) / 2
        share = (step + 0.5) / total
        if share < WARM_UP:
            return self.lr * share / WARM_UP
        return self.lr * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2

    def _resume(self, loop: Loop, work: Unfinished | None) -> None:
        found: tuple[dict[str, Tensor], dict[str, Any]] | None = work.load() if work is not None else None
        if found is not None:
            loop.restore(*found)
        if work is not None and loop.ranks.rank == 0:
            work.note(
                {"event": "go on" if found else "start", "step": loop.step, "steps": loop.total, "processes": loop.ranks.size}
            )


def _require(holds: bool, needed: str, got: object, do: str) -> None:
    if not holds:
        raise SpecError(f"Fit: {needed}, got {got!r}. {do}")


def counted(module: nn.Module, add: Callable[[float], None]) -> list[RemovableHandle]:
    """Tell `add` of every example that goes forward with a gradient; joint losses call the members one by one."""
    parts = list(getattr(module, "members", None) or [module])

    def tell(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if torch.is_grad_enabled():
            add(len(inputs[0]) / len(parts))

    return [part.register_forward_hook(tell) for part in parts]
