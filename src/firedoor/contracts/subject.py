"""What is judged, and what comes of it: an attack by its maker, a clause, a verdict with the measured value and its bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.contracts import victims
from firedoor.errors import ModelRefused, SpecError, UsageError
from firedoor.protocols import Access, Attack, Budget, Returned, Stops
from firedoor.threat import L0, L1, L2, Linf, Threat

__all__ = ["NORMS", "Broken", "Clause", "Excused", "Maker", "Subject", "Verdict", "at_least", "at_most", "need"]

Maker = Callable[[Threat, tuple[int, ...], int, Mapping[str, object]], Attack]
"""(threat, shape of one input, classes, changed fields) to an attack with small budgets. Fields that it lacks are passed over."""

NORMS: dict[str, Callable[[float, bool], Any]] = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
EXACT = {"gradient", "white box", "adaptive", "ensemble", ""}  # families that use the source's gradient as it is
UNAIMED = {"null", "universal", "generative"}  # one answer for all, or none: closed forms per example are no measure of them


class Broken(Exception):
    """A clause does not hold. The text holds the measured value and its bound."""


class Excused(Exception):
    """A clause does not apply. The text says why."""


@dataclass(frozen=True)
class Verdict:
    """What one clause found about one entry."""

    clause: int
    entry: str
    outcome: Literal["pass", "fail", "skip"]
    text: str


@dataclass(frozen=True)
class Clause:
    """One demand. `check` returns what it measured, and raises Broken or Excused."""

    number: int
    title: str
    check: Callable[[Subject], str]


@dataclass(frozen=True)
class Subject:
    """One attack under judgement. `family`: as the catalogue says; "" is judged as a gradient attack.

    `stranger`: the family is what the attack says of itself; that it aims at no example is believed where it learns beforehand.
    """

    name: str
    maker: Maker
    family: str = ""
    stranger: bool = False

    def make(
        self,
        threat: Threat,
        changes: Mapping[str, object] | None = None,
        shape: tuple[int, ...] = victims.SHAPE,
        classes: int = 4,
    ) -> Attack:
        return self.maker(threat, shape, classes, changes or {})

    def ball(self, norm: str, eps: float) -> Threat:
        """A threat as the attack takes it: targeted only if it takes no other, and then y is y_target."""
        threat: Threat = NORMS[norm](eps, self.aimed)
        return threat

    @cached_property
    def aimed(self) -> bool:
        """Whether it takes targeted threats only."""
        return not self._norms(False) and bool(self._norms(True))

    def _norms(self, targeted: bool) -> list[str]:
        found = []
        for norm in NORMS:
            with suppress(SpecError):
                self.make(NORMS[norm](8 if norm == "L0" else 0.1, targeted))
                found.append(norm)
        return found

    @cached_property
    def norms(self) -> list[str]:
        """The norms that the attack takes, of Linf, L2, L1 and L0. Errors: Excused if there is none."""
        found = self._norms(self.aimed)
        if not found:
            raise Excused("it takes none of the norms Linf, L2, L1 and L0 here")
        return found

    def threats(self, eps: float) -> list[Threat]:
        """Balls in the norms that the attack takes; 8 pixels for L0."""
        return [self.ball(norm, 8 if norm == "L0" else eps) for norm in self.norms]

    def threat(self, eps: float) -> Threat:
        """A ball in the first norm that the attack takes."""
        return self.threats(eps)[0]

    def source(self, net: nn.Module, twin: nn.Module | None = None) -> nn.Module:
        """`net` as this attack may see it: without gradients, without scores, or as one of two members (`twin`, itself if None)."""
        if self.sample.needs is not Access.GRADIENTS:
            return victims.Veiled(net, self.sample.needs)
        return victims.Pair(net, twin or net) if self.family == "ensemble" else net

    @cached_property
    def sample(self) -> Attack:
        """The attack in its first norm, to ask what it declares."""
        return self.make(self.threat(0.1))

    @property
    def exact(self) -> bool:
        """Whether the best point of a linear model is within its reach."""
        return self.family in EXACT and self.sample.needs is Access.GRADIENTS and not self.blind

    @property
    def blind(self) -> bool:
        """Whether it asks the model nothing, not even while it prepares."""
        return self.sample.gradients == 0 and self.sample.queries == 0 and preparation(self.sample) == 0

    @property
    def unaimed(self) -> bool:
        """Whether it has one answer for all examples, or none: then no closed form binds it."""
        return self.family in UNAIMED and (not self.stranger or preparation(self.sample) > 0)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether it takes inputs of that shape."""
        return self.refusal(shape) is None

    def refusal(self, shape: tuple[int, ...]) -> Exception | None:
        """The error with which it refuses inputs of that shape."""
        if shape not in self._refusals:
            self._refusals[shape] = None
            w = victims.normals(self.few, math.prod(shape), key=3)
            network = victims.DeepLinear(w, 0.0, shape[0]) if len(shape) == 3 else victims.Linear(w)
            try:
                attack = self.make(self.threat(0.1), {}, shape, self.few)
                run(attack, self.source(network), victims.images(2, shape, 0.2, 0.8), torch.tensor([0, 1]))
            except (SpecError, ModelRefused) as error:
                self._refusals[shape] = error
        return self._refusals[shape]

    @cached_property
    def _refusals(self) -> dict[tuple[int, ...], Exception | None]:
        return {}

    @property
    def few(self) -> int:
        """The fewest classes that it takes."""
        return max(self.sample.semantics.min_classes, 2)

    @property
    def minimum(self) -> bool:
        return self.sample.semantics.budget is Budget.MINIMUM

    @property
    def stays(self) -> bool:
        """Whether it goes on, and harms as much as it can, once the source is fooled."""
        semantics = self.sample.semantics
        going = semantics.returned in (Returned.LAST, Returned.BEST_LOSS) and semantics.stops is Stops.NEVER
        return going and not self.minimum


def preparation(attack: Attack) -> int:
    """Passes of training examples that each call of an attack takes that learns first; 0 for the others."""
    return int(getattr(attack, "preparation", 0))


def run(attack: Attack, source: nn.Module, x: Tensor, y: Tensor, key: int = 0, ids: Sequence[str] | None = None) -> Tensor:
    """The attack with a given seed and given ids."""
    names = [f"example {i}" for i in range(len(x))] if ids is None else ids
    with seed.streams(key, names, purpose="contract"):
        return attack(source, x, y)


def need(holds: bool, text: str) -> None:
    if not holds:
        raise Broken(text)


def at_most(value: float, bound: float, what: str) -> str:
    """The text of a value that must not exceed its bound. Errors: Broken; NaN is over every bound."""
    need(value <= bound, f"{what}: {value:.4g}, at most {bound:.4g} allowed")
    return f"{what}: {value:.3g} (at most {bound:.3g})"


def at_least(value: float, bound: float, what: str) -> str:
    """The text of a value that must reach its bound. Errors: Broken."""
    need(value >= bound, f"{what}: {value:.4g}, at least {bound:.4g} needed")
    return f"{what}: {value:.3g} (at least {bound:.3g})"


def refused(call: Callable[[], object], what: str) -> Exception:
    """The error that `call` ends with. Errors: Broken if there is none, or one that was not raised on purpose."""
    try:
        call()
    except (UsageError, ValueError, TypeError) as error:
        need(len(str(error)) > 10, f"{what} is refused without a word of explanation ({error!r})")
        return error
    except (Broken, Excused):
        raise
    except Exception as error:
        raise Broken(
            f"{what} ends in {type(error).__name__}: {str(error)[:120]}; an error that names the problem is needed"
        ) from error
    raise Broken(f"{what} is accepted; an error that names the problem is needed")


def rows(value: Tensor) -> Tensor:
    """(n, *shape) to the largest absolute value of each row."""
    return value.detach().double().flatten(1).abs().amax(1) if value.numel() else torch.zeros(len(value), dtype=torch.float64)
