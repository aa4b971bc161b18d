"""Several versions of one network, from one training run, that answer together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from firedoor import device, seed
from firedoor.errors import SpecError
from firedoor.models.ensemble import Members
from firedoor.protocols import Access, Architecture, Dataset, Fit, Model, Store
from firedoor.spec import to_dict

__all__ = ["Snapshots"]


@dataclass(frozen=True)
class Snapshots:
    """The network at the end of each learning-rate cycle, combined by mean probability. Needs a fit with cycles >= 2.

    Family: ensemble. Year: 2017.
    Reference: Huang et al. 2017, sec. 3, arXiv:1704.00109.
    """

    architecture: Architecture
    data: Dataset
    fit: Fit
    seed: int = 0
    part: Literal["target", "source"] = "target"

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fit.cycles < 2:
            raise SpecError(
                f'Snapshots needs a fit with cycles >= 2, got {self.fit.cycles}. Set schedule = "cosine-cycles", cycles = 3.'
            )

    def load(self, store: Store) -> nn.Module:
        """The live ensemble with `.members`."""
        tensors, _ = store.get("model", self.inputs(), lambda: self._train(store))
        module = Members([self._build() for _ in range(self.fit.cycles)], "probabilities")
        module.load_state_dict(tensors)
        return device.placed(module).eval().requires_grad_(False)

    def relax(self) -> Model:
        """Itself: averaging hides nothing."""
        return self

    def inputs(self) -> dict[str, object]:
        """All that the weights depend on."""
        return {"model": to_dict(self, digests=True)}

    def begin(self, store: Store) -> nn.Module:
        """The network before its first batch."""
        return device.placed(self._build())

    def _build(self) -> nn.Module:
        with seed.forked(self.seed, "weights"):
            return self.architecture.build(self.data.shape, len(self.data.classes))

    def _train(self, store: Store) -> tuple[dict[str, Tensor], dict[str, object]]:
        work = store.unfinished("model", self.inputs())
        training = self.fit.train(self.begin(store), self.data.split(self.part), store, self.seed, work)
        weights = {f"members.{i}.{k}": v for i, member in enumerate(training.members) for k, v in member.items()}
        return weights, training.record
