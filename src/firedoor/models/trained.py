"""A network that the study trains itself, perhaps random, perhaps with a specimen of false security built in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from firedoor import device, seed
from firedoor.errors import SpecError
from firedoor.expectation import Expectation
from firedoor.protocols import Access, Architecture, Dataset, Fit, Model, Specimen, Store
from firedoor.spec import to_dict

__all__ = ["Expected", "RelaxedSpecimen", "Trained"]


@dataclass(frozen=True)
class Trained:
    """An architecture trained with `fit` on one part of the data. The same recipe and seed give the same weights.

    Family: none. Reference: Rumelhart et al. 1986, doi:10.1038/323533a0.
    """

    architecture: Architecture
    data: Dataset
    fit: Fit
    seed: int = 0
    part: Literal["target", "source"] = "target"
    specimen: Specimen | None = None

    access: ClassVar[Access] = Access.GRADIENTS

    @property
    def stochastic(self) -> bool:
        """Whether the network, or the specimen in it, draws at each query."""
        return _draws(self.architecture) or _draws(self.specimen)

    def load(self, store: Store) -> nn.Module:
        """The live network: eval mode, parameters frozen; trained now if the store does not have it."""
        module = self._build()
        tensors, _ = store.get("model", self.inputs(), lambda: self.make(store))
        module.load_state_dict(tensors)
        return device.placed(module).eval().requires_grad_(False)

    def relax(self) -> Model:
        """Itself; a specimen's own recovered gradient where it hides one, and the expectation over draws of a random network."""
        if self.specimen is None or getattr(self.specimen, "honest", False):
            return Expected(self) if self.stochastic else self
        relaxed = RelaxedSpecimen(self)
        return Expected(relaxed) if _draws(self.architecture) and not _draws(self.specimen) else relaxed

    def inputs(self) -> dict[str, object]:
        """All that the weights depend on."""
        return {"model": to_dict(self, digests=True)}

    def make(self, store: Store, on_step: Callable[[int, int], None] | None = None) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Train it now: the weights, and the seconds and passes it took. `on_step(done, steps)` follows each batch."""
        module, work = self.begin(store), store.unfinished("model", self.inputs())
        training = self.fit.train(module, self.data.split(self.part), store, self.seed, work, on_step)
        return training.members[-1], training.record

    def begin(self, store: Store) -> nn.Module:
        """The network before its first batch."""
        return device.placed(self._build())

    def _build(self) -> nn.Module:
        with seed.forked(self.seed, "weights"):
            shape, classes = self.data.shape, len(self.data.classes)
            if self.specimen is not None:
                return self.specimen.build(self.architecture, shape, classes)
            return self.architecture.build(shape, classes)


@dataclass(frozen=True)
class RelaxedSpecimen:
    """What an adaptive attacker differentiates instead of a specimen: the same labels, an honest gradient.

    Family: none. Reference: Athalye et al. 2018, sec. 4, arXiv:1802.00420.
    """

    model: Trained

    access: ClassVar[Access] = Access.GRADIENTS

    @property
    def stochastic(self) -> bool:
        """Whether it draws at each query: a random specimen relaxes to a mean over draws, which are drawn afresh too."""
        return self.model.stochastic

    def load(self, store: Store) -> nn.Module:
        """The relaxed network over the same weights."""
        specimen = self.model.specimen
        if specimen is None:
            return self.model.load(store)
        relaxed = specimen.relax(self.model.load(store))
        return relaxed.eval().requires_grad_(False)

    def relax(self) -> Model:
        """Itself."""
        return self


@dataclass(frozen=True)
class Expected:
    """What an adaptive attacker differentiates instead of a random network: the log of its mean probability over `n` draws.

    Family: none. Reference: Athalye et al. 2018, sec. 4, arXiv:1802.00420.
    """

    model: Model
    n: int = 20

    access: ClassVar[Access] = Access.GRADIENTS

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise SpecError(f"Expected: n must be a whole number of 1 or more, got {self.n!r}. Try 20.")

    @property
    def stochastic(self) -> bool:
        """Whether the model is: a mean over finitely many draws is random too."""
        return self.model.stochastic

    def load(self, store: Store) -> nn.Module:
        """The mean over draws of the same network."""
        return Expectation(self.model.load(store), self.n)

    def relax(self) -> Model:
        """Itself."""
        return self


def _draws(part: object) -> bool:
    return bool(getattr(part, "stochastic", False))
