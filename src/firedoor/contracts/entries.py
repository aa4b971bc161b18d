"""Which attacks are judged: every entry of the catalogue that is one, and every part, objective and estimator in the loop."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from firedoor import catalogue
from firedoor.attacks.iterated import Iterated
from firedoor.attacks.named.gradient import FGSM
from firedoor.attacks.objectives.undetected import Undetected
from firedoor.attacks.square import Square
from firedoor.contracts import victims
from firedoor.contracts.detector_source import OnDetector
from firedoor.contracts.own_source import Given, Live, WithSource
from firedoor.contracts.subject import Maker, Subject
from firedoor.errors import SpecError
from firedoor.protocols import Attack
from firedoor.threat import Threat

__all__ = ["SMALL", "attack_maker", "looped_maker", "subject", "subjects"]

SMALL: dict[str, object] = {
    "steps": 3,
    "n": 2,
    "m": 2,
    "copies": 2,
    "n_others": 2,
    "queries": 20,
    "probes": 10,
    "classes": 3,
    "searches": 2,
    "epochs": 1,
    "samples": 2,
    "draws": 2,
    "batch_size": 8,
    "rounds": 2,
    "members": 2,
    "width": 4,
    "neighbours": 1,
    "chains": 2,
}
"""Budgets small enough to ask many questions; a clause that needs a large one says so."""

IN_THE_LOOP = {"parts": "parts", "objectives": "objective", "estimators": "estimator"}


def subjects() -> tuple[Subject, ...]:
    """All of them, by kind and name. A recipe in the loop is called after its kind: 'part Momentum'."""
    names = [("attacks", e.name) for e in catalogue.entries("attacks") if e.module.startswith("firedoor.attacks.")]
    names += [(kind, e.name) for kind in IN_THE_LOOP for e in catalogue.entries(kind)]
    return tuple(subject(kind, name) for kind, name in names)


def subject(kind: str, name: str) -> Subject:
    """One entry as what is judged. Errors: SpecError for an unknown name."""
    entry = next((e for e in catalogue.entries(kind) if e.name == name), None)
    if entry is None:
        raise SpecError(f"no {kind} entry is called {name!r}. `firedoor list {kind}` shows all.")
    recipe = getattr(importlib.import_module(entry.module), name)
    if kind == "attacks":
        return Subject(name, attack_maker(recipe), entry.family)
    return Subject(f"{kind.removesuffix('s')} {name}", looped_maker(recipe, IN_THE_LOOP[kind]), entry.family)


def attack_maker(recipe: Callable[..., Any]) -> Maker:
    """Makes the attack of a dataclass or an alias with small budgets, a data set and an inner attack where it wants them."""

    def make(threat: Threat, shape: tuple[int, ...], classes: int, changes: Mapping[str, object]) -> Attack:
        attack: Attack = _filled(recipe, threat, shape, classes, changes)
        return Live(attack, Given(shape, classes)) if isinstance(attack, WithSource) else attack

    return make


def looped_maker(recipe: Callable[..., Any], place: str) -> Maker:
    """Makes `Iterated` with a part, an objective or an estimator in its place. Changed fields go to whichever has them."""

    def make(threat: Threat, shape: tuple[int, ...], classes: int, changes: Mapping[str, object]) -> Attack:
        inner = _filled(recipe, threat, shape, classes, changes)
        own = set(inspect.signature(recipe).parameters)
        fields: dict[str, Any] = {"steps": SMALL["steps"], place: (inner,) if place == "parts" else inner}
        fields |= {k: v for k, v in changes.items() if k == "steps" or (k in ("restarts", "keep") and k not in own)}
        attack = Iterated(threat, **fields)
        return OnDetector(attack) if isinstance(inner, Undetected) else attack

    return make


def _filled(recipe: Callable[..., Any], threat: Threat, shape: tuple[int, ...], classes: int, changes: Mapping[str, object]) -> Any:
    parameters = inspect.signature(recipe).parameters
    given = {"threat": threat, "attack": FGSM(threat), "data": victims.Shapes(shape, classes)}
    if "query" in parameters and "transfer" in parameters:
        queries = changes.get("queries", SMALL["queries"])
        assert isinstance(queries, int), "a number of queries is a whole one"
        given |= {"query": Square(threat, queries), "transfer": FGSM(threat), "source": Given(shape, classes)}
    hints = typing.get_type_hints(recipe if inspect.isfunction(recipe) else recipe.__init__)
    small = {k: v for k, v in SMALL.items() if hints.get(k) is int}
    arguments = {k: v for k, v in {**small, **changes, **given}.items() if k in parameters}
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
    if missing:
        raise SpecError(
            f"the contract cannot fill the field {missing[0]!r}: only threat, attack and data are known to it. Give it a default."
        )
    return recipe(**arguments)
