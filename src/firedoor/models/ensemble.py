"""Several networks that answer together: a defence when deployed, a stronger source when attacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from firedoor.errors import ModelRefused, SpecError
from firedoor.members import Members
from firedoor.protocols import Access, Model, Store

__all__ = ["Ensemble", "Members"]


@dataclass(frozen=True)
class Ensemble:
    """The mean of the members' logits, or the log of their mean probability.

    Family: ensemble; source recipe. Year: 2017. Tier: T1.
    Reference: Liu et al. 2017, sec. 4, arXiv:1611.02770 (as a source); Strauss et al. 2017, arXiv:1709.03423 (as a defence).
    """

    members: tuple[Model, ...]
    combine: Literal["logits", "probabilities"] = "probabilities"

    access: ClassVar[Access] = Access.GRADIENTS

    def __post_init__(self) -> None:
        if not self.members:
            raise SpecError("Ensemble needs at least one member, got none. Name them in `members`.")

    @property
    def stochastic(self) -> bool:
        """Whether any member is."""
        return any(m.stochastic for m in self.members)

    def load(self, store: Store) -> nn.Module:
        """The live ensemble with `.members`."""
        loaded: list[nn.Module] = []
        for member in self.members:
            live = member.load(store)
            if not isinstance(live, nn.Module):
                raise ModelRefused(
                    f"a member of an ensemble must be a network (nn.Module), got {type(live).__name__}. Wrap it in one."
                )
            loaded.append(live)
        return Members(loaded, self.combine).eval()

    def relax(self) -> Model:
        """The ensemble of the relaxed members: averaging itself hides nothing."""
        relaxed = tuple(m.relax() for m in self.members)
        return self if relaxed == self.members else Ensemble(relaxed, self.combine)
