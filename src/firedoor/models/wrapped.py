"""A model behind an inference-time defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Model, SecondView, Store, Wrapper

__all__ = ["Relaxed", "RelaxedByIdentity", "Wrapped", "abstains", "detects", "second_view"]


@dataclass(frozen=True)
class Wrapped:
    """`wrapper` around `model`. `Wrapped(m, w).relax().load(s)` is `w.relax(m.relax().load(s), s)`: stacks compose inside out.

    Family: none. Reference: Athalye et al. 2018, sec. 4, arXiv:1802.00420.
    """

    model: Model
    wrapper: Wrapper

    access: ClassVar[Access] = Access.GRADIENTS

    @property
    def stochastic(self) -> bool:
        """Whether the wrapper or the model draws at each query."""
        return self.wrapper.stochastic or self.model.stochastic

    def load(self, store: Store) -> Classifier:
        """The wrapped network."""
        return self.wrapper.wrap(self.model.load(store), store)

    def relax(self) -> Model:
        """What an adaptive attacker differentiates."""
        return Relaxed(self.model, self.wrapper)


@dataclass(frozen=True)
class Relaxed:
    """A wrapped model with every gradient recovered.

    Family: none. Reference: Athalye et al. 2018, sec. 4, arXiv:1802.00420.
    """

    model: Model
    wrapper: Wrapper

    access: ClassVar[Access] = Access.GRADIENTS

    @property
    def stochastic(self) -> bool:
        """Whether it draws at each query."""
        return self.wrapper.stochastic or self.model.stochastic

    def load(self, store: Store) -> Classifier:
        """The relaxed wrapper around the relaxed model."""
        return self.wrapper.relax(self.model.relax().load(store), store)

    def relax(self) -> Model:
        """Itself."""
        return self


@dataclass(frozen=True)
class RelaxedByIdentity:
    """A wrapped model whose wrapper is gone around by the identity's gradient; what lies inside is relaxed as ever.

    Family: none. Reference: Athalye et al. 2018, sec. 4, arXiv:1802.00420.
    """

    model: Model
    wrapper: Wrapper

    access: ClassVar[Access] = Access.GRADIENTS

    @property
    def stochastic(self) -> bool:
        """Whether it draws at each query."""
        return self.wrapper.stochastic or self.model.stochastic

    def load(self, store: Store) -> Classifier:
        """The relaxed wrapper around the relaxed model."""
        if not isinstance(self.wrapper, SecondView):
            raise SpecError(f"{type(self.wrapper).__name__} must have a second way around it, got one only. Use `relax`.")
        return self.wrapper.relax_by_identity(self.model.relax().load(store), store)

    def relax(self) -> Model:
        """Itself."""
        return self


def second_view(model: Model) -> Model | None:
    """The model with another way around the outermost of its wrappers that has one, the others relaxed; None where none has."""
    if not isinstance(model, Wrapped):
        return None
    if isinstance(model.wrapper, SecondView):
        return RelaxedByIdentity(model.model, model.wrapper)
    inner = second_view(model.model)
    return None if inner is None else Relaxed(inner, model.wrapper)


def abstains(model: Model) -> bool:
    """Whether the model has one answer more than there are classes: none of them."""
    return _declares(model, "abstains")


def detects(model: Model) -> bool:
    """Whether it abstains by a score that can be asked for, as `Undetected` needs."""
    return _declares(model, "detects")


def _declares(model: Model, what: str) -> bool:
    inner = getattr(model, "model", None)
    own = any(getattr(part, what, False) for part in (model, getattr(model, "wrapper", None)))
    return own or (inner is not None and _declares(inner, what))
