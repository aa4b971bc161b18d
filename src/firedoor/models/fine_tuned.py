"""A network that goes on from the weights of another one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from firedoor.errors import AccessError, ModelRefused, SpecError
from firedoor.protocols import Access, Dataset, Fit, Model, Store
from firedoor.spec import to_dict

__all__ = ["FineTuned"]


@dataclass(frozen=True)
class FineTuned:
    """The network `start`, trained further with `fit` on one part of the data. `start` itself stays as it is.

    A defence that begins where a clean network ended gets robust at less training than one from random weights, and keeps more clean
    accuracy. `seed` orders the batches; the first weights are those of `start`, so two seeds are less different than two networks.
    Errors: AccessError for a start whose weights may not be seen; SpecError for one that draws at random; ModelRefused, at load, for one
    without weights.

    Family: none. Year: 2020.
    Reference: Jeddi et al. 2020, arXiv:2012.13628.
    """

    start: Model
    data: Dataset
    fit: Fit
    seed: int = 0
    part: Literal["target", "source"] = "target"

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.start.access < Access.GRADIENTS:
            raise AccessError(
                f"FineTuned needs the weights of its start, which gives {self.start.access.name} only. Name a network."
            )
        if self.start.stochastic:
            raise SpecError(
                f"FineTuned: the start must answer the same each time, got {type(self.start).__name__}. Name a plain network."
            )

    @property
    def architecture(self) -> object:
        """That of the start, where it has one."""
        return getattr(self.start, "architecture", None)

    def load(self, store: Store) -> nn.Module:
        """The live network: eval mode, parameters frozen; trained now if the store does not have it."""
        tensors, _ = store.get("model", self.inputs(), lambda: self.make(store))
        module = self.begin(store)
        module.load_state_dict(tensors)
        return module.eval().requires_grad_(False)

    def relax(self) -> Model:
        """Itself: it is an honest network."""
        return self

    def inputs(self) -> dict[str, object]:
        """All that the weights depend on."""
        return {"model": to_dict(self, digests=True)}

    def make(self, store: Store, on_step: Callable[[int, int], None] | None = None) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Train it now: the weights, and the seconds and passes it took, without those of the start."""
        module, work = self.begin(store), store.unfinished("model", self.inputs())
        training = self.fit.train(module, self.data.split(self.part), store, self.seed, work, on_step)
        return training.members[-1], training.record

    def begin(self, store: Store) -> nn.Module:
        """A copy of the start, before the first batch."""
        live = self.start.load(store)
        if not isinstance(live, nn.Module):
            raise ModelRefused(f"FineTuned needs a start with weights, got {type(live).__name__}. Name a network.")
        return deepcopy(live)
