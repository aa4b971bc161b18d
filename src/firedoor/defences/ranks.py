"""One training over several processes, in mixed precision, with trackers: what accelerate does for the loop.

Every process takes its share of each batch and the gradients are summed over all, as in distributed data parallel training (Li et
al. 2020, arXiv:2006.15704). The network itself is not wrapped: losses that take a second derivative, move the weights or attack the
network would go around the wrapper's hooks. So gradients travel after the backward pass and not during it.
"""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from firedoor import device
from firedoor.errors import SetupError

__all__ = ["Ranks"]

PRECISION = {"exact": "no", "bf16": "bf16", "fp16": "fp16"}


def _leave() -> None:
    """At the end of the process: the group's threads, if they outlive Python, now and then abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Ranks:
    """The processes that train together; one unless `torchrun` or `accelerate launch` started more."""

    def __init__(self, precision: str, trackers: tuple[str, ...], folder: str) -> None:
        import accelerate
        from accelerate.state import AcceleratorState

        if torch.distributed.is_available():
            # Default arguments in there keep the group that exists when it is imported, and with it the group's threads.
            importlib.import_module("torch.distributed.nn.functional")
        if precision == "fp16" and device.current().type == "cpu":
            raise SetupError("training in fp16 needs an accelerator, got a CPU. Use precision 'exact' or 'bf16'.")
        AcceleratorState._reset_state()  # another training of this process may have had another precision
        try:
            self.accelerator = accelerate.Accelerator(
                cpu=device.current().type == "cpu",
                mixed_precision=PRECISION[precision],
                log_with=list(trackers) or None,
                project_dir=folder or None,
            )
        except (ValueError, ImportError) as error:
            raise SetupError(
                f"training cannot use precision {precision!r} with trackers {list(trackers)} here ({error}). "
                "Use precision 'exact', or install the tracker."
            ) from None
        missing = {*trackers} - {"all"} - {str(getattr(t, "value", t)) for t in self.accelerator.log_with}
        if missing:
            raise SetupError(
                f"training needs the tracker {' and '.join(sorted(missing))}, which is not installed. Install it, or leave it out."
            )
        if self.size > 1:
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """How many they are."""
        return int(self.accelerator.num_processes)

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return rows[self.rank :: self.size]

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it matrix products run in the chosen precision."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def prepared(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser, which scales and skips as half precision needs."""
        return self.accelerator.prepare_optimizer(optimiser)  # type: ignore[no-any-return]

    def backward(self, value: Tensor) -> None:
        """Adds to the gradients, scaled as half precision needs."""
        self.accelerator.backward(value)

    def sum_gradients(self, module: nn.Module) -> None:
        """Every process then has the gradients of the whole batch."""
        if self.size == 1:
            return
        weights = list(module.parameters())
        some = torch.tensor([float(p.grad is not None) for p in weights], device=device.current())
        for p, count in zip(weights, self.accelerator.reduce(some, "sum").tolist(), strict=True):
            if count and p.grad is None:  # a process whose share of a last batch is empty
                p.grad = torch.zeros_like(p)
        self._together([p.grad for p in weights if p.grad is not None], "sum")

    def agree(self, module: nn.Module) -> None:
        """Buffers, which every process counted from its own share, become their mean; counters those of the first process."""
        if self.size > 1:
            from accelerate.utils import broadcast

            self._together([b for b in module.buffers() if b.is_floating_point()], "mean")
            for counter in (b for b in module.buffers() if not b.is_floating_point()):
                counter.copy_(broadcast(counter.clone()))

    def total(self, value: float) -> float:
        """A number summed over the processes."""
        if self.size == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=device.current()), "sum"))

    def clip(self, module: nn.Module, most: float) -> None:
        """Shorten the gradient to that norm."""
        self.accelerator.clip_grad_norm_(module.parameters(), most)

    def track(self, name: str, settings: Mapping[str, Any]) -> None:
        """Open the trackers."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(name, dict(settings))

    def tell(self, numbers: Mapping[str, float], step: int) -> None:
        """Tell the trackers."""
        if self.accelerator.log_with:
            self.accelerator.log(dict(numbers), step=step)

    def close(self) -> None:
        """Close the trackers."""
        if self.accelerator.log_with:
            self.accelerator.end_training()

    def _together(self, tensors: Iterable[Tensor], how: str) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for t in tensors:
            by_type.setdefault(t.dtype, []).append(t)
        for some in by_type.values():
            flat = self.accelerator.reduce(torch.cat([t.reshape(-1) for t in some]), how)
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.copy_(part.view_as(t))
