"""The loop that every training runs: batch by batch, able to go on where it was killed, and equal to one that nobody killed.

What a step does depends on (seed, epoch, ids) and on what a checkpoint holds, so no moment of it is lost but the last few steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from firedoor import device
from firedoor import seed as seeds
from firedoor.defences.augmentation import augmentation
from firedoor.defences.averages import EqualAverage, MovingAverage, state_of
from firedoor.defences.ranks import Ranks
from firedoor.errors import ModelRefused, SpecError
from firedoor.protocols import Batch, LossFn, Split, Unfinished

if TYPE_CHECKING:
    from firedoor.defences.fit import Fit

__all__ = ["Loop", "Remembering", "Watching"]


@runtime_checkable
class Watching(Protocol):
    """A live loss that looks at the network after each epoch, in training mode, and may put earlier weights back."""

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor: ...
    def epoch_end(self, module: nn.Module, epoch: int) -> bool: ...  # True ends the training with the weights as they now are


@runtime_checkable
class Remembering(Protocol):
    """A live loss that carries something from batch to batch, so a checkpoint must hold it."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: dict[str, Tensor]) -> None: ...


class Loop:
    """One training. `step`: how many batches are done; `forwarded`: how many examples were, by the caller's count."""

    def __init__(self, fit: Fit, module: nn.Module, split: Split, loss: LossFn, seed: int, ranks: Ranks) -> None:
        self.fit, self.module, self.split, self.loss, self.seed, self.ranks = fit, module, split, loss, seed, ranks
        if getattr(loss, "whole_batches", False) and (fit.accumulate > 1 or ranks.size > 1):
            raise SpecError(
                f"Fit: {type(fit.loss).__name__} carries something from batch to batch, so it needs whole batches, got accumulate = "
                f"{fit.accumulate} and {ranks.size} processes. Use 1 of each."
            )
        self.optimiser = ranks.prepared(fit.optimiser_for(module))
        n = len(split)
        self.starts = [i for i in range(0, n, fit.batch_size) if n - i > 1]  # one example has no batch statistics
        self.total = fit.epochs * len(self.starts)
        self.planned = fit.epochs * sum(min(fit.batch_size, n - i) for i in self.starts)
        self.step, self.forwarded, self.seconds = 0, 0.0, 0.0
        self.average = MovingAverage(fit.ema) if fit.ema is not None else EqualAverage()
        self.members: list[dict[str, Tensor]] = []
        self.best: dict[str, Tensor] = {}
        self.scores: list[float] = []
        self.stopped = self.undone = False  # undone: by the loss, which put earlier weights back
        self._losses: list[float] = []

    def run(
        self, work: Unfinished | None, score: Callable[[nn.Module], float] | None, on_step: Callable[[int, int], None] | None
    ) -> None:
        """All epochs, from wherever the last checkpoint is."""
        began, saved = time.perf_counter(), time.perf_counter()
        earlier, ordered, order = self.seconds, -1, torch.empty(0)
        while not self.stopped and self.step < self.total:
            epoch, place = divmod(self.step, len(self.starts))
            if ordered != epoch:
                self.module.train()
                ordered, order = epoch, torch.from_numpy(seeds.order(len(self.split), self.seed, f"epoch {epoch}"))
            self.take(order[self.starts[place] : self.starts[place] + self.fit.batch_size], epoch)
            self.step += 1
            self.seconds = earlier + time.perf_counter() - began
            if self.step % len(self.starts) == 0:
                self._epoch_end(epoch, work, score)
            if on_step is not None and not self.stopped:
                on_step(self.step, self.total)
            going_on = not self.stopped and self.step < self.total
            if work is not None and going_on and time.perf_counter() - saved >= self.fit.checkpoint_seconds:
                self.save(work)
                saved = time.perf_counter()

    def outcome(self) -> list[dict[str, Tensor]]:
        """The states that the training gave: one per cycle, the average, the best, or the last."""
        if self.fit.early_stopping is not None and self.best:
            self.module.load_state_dict(self.best)
        elif self.average.count and not (self.undone and self.fit.ema is not None):  # that average holds the steps that were undone
            self.module.load_state_dict(self.average.state(self.module))
            self.ranks.agree(self.module)
            self.members.clear()
        return self.members + [state_of(self.module)] * (self.fit.cycles - len(self.members))

    def take(self, rows: Tensor, epoch: int) -> None:
        """One batch: its gradients, from `accumulate` parts, and a step of the optimiser."""
        fit, rate = self.fit, self.fit.rate(self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for _ in range(fit.replays):
            self.optimiser.zero_grad(set_to_none=True)
            value = 0.0
            for part in self.ranks.share(rows).chunk(fit.accumulate):
                if len(part):
                    value += self._backward(part, len(part) / len(rows), epoch, rate)
            self.ranks.sum_gradients(self.module)
            if fit.clip_gradient is not None:
                self.ranks.clip(self.module, fit.clip_gradient)
            self.optimiser.step()
            self._losses.append(value)
        if fit.ema is not None:
            self.average.add(self.module)

    def _backward(self, rows: Tensor, share: float, epoch: int, rate: float) -> float:
        split, ids = self.split, [self.split.ids[int(i)] for i in rows]
        augment = augmentation(self.fit.augment, self.seed, ids, epoch)
        batch = Batch(augment(split.x[rows]), split.y[rows].to(device.current()), ids, epoch, augment)
        try:
            with seeds.streams(self.seed, ids, draw=epoch, purpose="fit"), self.ranks.autocast():
                value = self.loss(self.module, batch)
        except ValueError as error:
            if len(rows) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise SpecError(
                f"Fit: batch statistics need 2 examples, got 1: a batch of {self.fit.batch_size} comes in {self.fit.accumulate} parts on "
                f"{self.ranks.size} processes ({error}). Use a larger batch_size, or fewer parts."
            ) from error
        found = float(value.detach())
        if not math.isfinite(found):
            raise ModelRefused(
                f"training needs a finite loss, got {found} in epoch {epoch + 1} at lr {rate:.3g}. "
                "Lower lr, or set clip_gradient = 1."
            )
        self.ranks.backward(value if share == 1 else share * value)
        return share * found

    def _epoch_end(self, epoch: int, work: Unfinished | None, score: Callable[[nn.Module], float] | None) -> None:
        fit = self.fit
        self.ranks.agree(self.module)
        if isinstance(self.loss, Watching):
            self.stopped = self.undone = self.loss.epoch_end(self.module, epoch)
        if not self.stopped:
            if fit.average_from is not None and epoch + 1 >= fit.average_from * fit.epochs:
                self.average.add(self.module)
            if fit.schedule == "cosine-cycles" and (epoch + 1) % (fit.epochs // fit.cycles) == 0:
                self.members.append(state_of(self.module))
            if score is not None and fit.early_stopping is not None and (epoch + 1) % fit.early_stopping.every == 0:
                self._look(score(self.module), fit.early_stopping.patience)
        told: dict[str, float] = {
            "loss": self.ranks.total(sum(self._losses) / max(len(self._losses), 1)),
            "lr": fit.rate(self.step - 1, self.total),
            "seconds": self.seconds,
        }
        if self.scores:
            told |= {"development": self.scores[-1], "best development": max(self.scores)}
        self._losses.clear()
        self.ranks.tell(told, self.step)
        if work is not None and self.ranks.rank == 0:
            work.note({"event": "epoch", "epoch": epoch + 1, "of": fit.epochs, "step": self.step, **told})

    def _look(self, score: float, patience: int) -> None:
        if not self.scores or score > max(self.scores):
            self.best = state_of(self.module)
        self.scores.append(score)
        since = len(self.scores) - 1 - self.scores.index(max(self.scores))
        self.stopped = since >= patience

    # ------------------------------------------------------------ checkpoints

    def save(self, work: Unfinished) -> None:
        """Write everything that the rest of this training depends on."""
        if self.ranks.rank:
            return
        tensors = {f"module/{k}": v for k, v in self.module.state_dict().items()}
        plain: dict[str, Any] = {}
        for i, (group, slot) in enumerate(self.optimiser.state_dict()["state"].items()):
            plain[f"{i}"] = {"parameter": group}
            for name, value in slot.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{group}/{name}"] = value
                elif value is not None:
                    plain[f"{i}"][name] = value
        tensors |= {f"average/{k}": v for k, v in self.average.sums.items()}
        tensors |= {f"member/{i}/{k}": v for i, member in enumerate(self.members) for k, v in member.items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        if isinstance(self.loss, Remembering):
            tensors |= {f"loss/{k}": v for k, v in self.loss.state().items()}
        tensors["generator"] = seeds.generator_state()
        record = {
            "step": self.step,
            "forwarded": self.forwarded,
            "seconds": self.seconds,
            "averaged": self.average.count,
            "scores": self.scores,
            "losses": self._losses,
            "optimiser": plain,
        }
        work.save({k: v.detach().clone() for k, v in tensors.items()}, record)

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        self.module.load_state_dict(parts["module"])
        slots: dict[int, dict[str, Any]] = {}
        for entry in record["optimiser"].values():
            slots[int(entry["parameter"])] = {k: v for k, v in entry.items() if k != "parameter"}
        for name, value in parts.get("optimiser", {}).items():
            group, _, slot = name.partition("/")
            slots.setdefault(int(group), {})[slot] = value
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.average.sums, self.average.count = parts.get("average", {}), int(record["averaged"])
        for name, value in parts.get("member", {}).items():
            number, _, key = name.partition("/")
            while len(self.members) <= int(number):
                self.members.append({})
            self.members[int(number)][key] = value
        self.best = parts.get("best", {})
        if isinstance(self.loss, Remembering):
            self.loss.restore(parts.get("loss", {}))
        self.step, self.forwarded, self.seconds = int(record["step"]), float(record["forwarded"]), float(record["seconds"])
        self.scores, self._losses = [float(s) for s in record["scores"]], [float(v) for v in record["losses"]]
        seeds.restore_generator(tensors["generator"])
