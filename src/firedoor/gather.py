"""Bring what a run found into one labelled matrix, with the facts that its rates need."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firedoor import catalogue, spec
from firedoor import study as studies
from firedoor.matrix import Matrix
from firedoor.models.wrapped import abstains
from firedoor.protocols import Attack, Learned, Model
from firedoor.study import RELATIVE, Study

__all__ = ["Found", "gather"]


@dataclass
class Found:
    """Labels as they come in. Keys: s source, a attack, t target; noise rows stand under source '' and the draw's number.

    labels: (s, a, t) -> (draws, n); clean, source_clean: name -> (draws, n); home: (s, a) -> (n,) and own_home: (s, a, t) -> (n,), the
    source's own answers; own_clean: (s, t) -> (n,); reasons and failed: "s|a|t" -> text, `*` for all.
    """

    labels: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    clean: dict[str, np.ndarray] = field(default_factory=dict)
    source_clean: dict[str, np.ndarray] = field(default_factory=dict)
    home: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    own_home: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    own_clean: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    strength: dict[str, dict[str, float]] = field(default_factory=dict)  # "s|a|t", t "*" for all: sizes of the changes
    leaked: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # targets and sources: evaluation ids they trained on

    def fail(self, key: str, error: Exception) -> None:
        """Note that a cell raised: it is kept as failed, never as a rate."""
        self.reasons[key] = self.failed[key] = f"failed: {type(error).__name__}: {error}"


def gather(study: Study, found: Found) -> Matrix:
    """The matrix of a study. Whatever was not found is -1."""
    import xarray as xr

    split = study.images
    sources, attacks = [*study.sources, *RELATIVE], [*study.attacks, *study.white_box]
    targets = list(study.targets)
    random = [t for t in targets if study.targets[t].stochastic]
    n, kind = len(split), np.int8 if len(study.data.classes) <= 127 else np.int16
    s_at, a_at, t_at = ({name: i for i, name in enumerate(names)} for names in (sources, attacks, targets))
    own_at = {name: i for i, name in enumerate(RELATIVE)}

    def empty(*shape: int) -> np.ndarray:
        return np.full(shape, -1, kind)

    predicted = empty(len(sources), len(attacks), len(targets), n)
    draws = empty(len(sources), len(attacks), len(random), n, study.draws)
    noise = empty(1 + max((int(a) for s, a, _ in found.labels if s == ""), default=0), len(targets), n)
    for (s, a, t), labels in found.labels.items():
        if s == "":
            if t in t_at:
                noise[int(a), t_at[t]] = labels[0]
            continue
        predicted[s_at[s], a_at[a], t_at[t]] = labels[0]
        if t in random:
            draws[s_at[s], a_at[a], random.index(t)] = labels.T
    home, own_home = empty(len(sources), len(attacks), n), empty(len(RELATIVE), len(attacks), len(targets), n)
    for (s, a), labels in found.home.items():
        home[s_at[s], a_at[a]] = labels
    for (s, a, t), labels in found.own_home.items():
        own_home[own_at[s], a_at[a], t_at[t]] = labels
    source_clean, own_clean = empty(len(sources), n), empty(len(RELATIVE), len(targets), n)
    for s, labels in found.source_clean.items():
        source_clean[s_at[s]] = labels[0]
    for (s, t), labels in found.own_clean.items():
        own_clean[own_at[s], t_at[t]] = labels
    variables: dict[str, Any] = {
        "predicted": (("source", "attack", "target", "example"), predicted),
        "clean": (("target", "example"), np.stack([found.clean[t][0] for t in targets]).astype(kind)),
        "noise": (("noise_draw", "target", "example"), noise),
        "source_clean": (("source", "example"), source_clean),
        "home": (("source", "attack", "example"), home),
        "own_home": (("relative_source", "attack", "target", "example"), own_home),
        "own_clean": (("relative_source", "target", "example"), own_clean),
        "y": (("example",), split.y.numpy().astype(kind)),
        "id": (("example",), np.array(split.ids)),
    }
    coords: dict[str, Any] = {"source": sources, "attack": attacks, "target": targets, "relative_source": list(RELATIVE)}
    if random:
        variables["draws"] = (("source", "attack", "random_target", "example", "draw"), draws)
        clean_draws = np.stack([found.clean[t].T for t in random]).astype(kind)
        variables["clean_draws"] = (("random_target", "example", "draw"), clean_draws)
        coords["random_target"] = random
    return Matrix(xr.Dataset(variables, coords=coords), _facts(study, found, split.y.numpy(), split.ids))


def _facts(study: Study, found: Found, y: np.ndarray, ids: tuple[str, ...]) -> dict[str, Any]:
    threat, targets = study.threat, list(study.targets)
    return {
        "schema": 1,
        "name": study.name,
        "description": study.description,
        "seed": study.seed,
        "draws": study.draws,
        "bar": study.bar,
        "audit": study.audit,
        "control": study.control,
        "classes": list(study.data.classes),
        "relative": list(RELATIVE),
        "threat": {"norm": threat.norm, "eps": threat.eps, "targeted": threat.targeted},
        "eight_bit": study.data.eight_bit,
        "data": {**spec.to_dict(study.data), "digest": study.data.digest()},
        "ids_digest": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "sources": [_source(study, n, m) for n, m in study.sources.items()],
        "attacks": [_attack(study, n, a) for n, a in (*study.attacks.items(), *study.white_box.items())],
        "targets": [_target(n, m) for n, m in study.targets.items()],
        "relaxed": [n for n, m in study.targets.items() if m.relax() != m],
        "rungs": {s: {t: study.rung(s, t) for t in targets} for s in (*study.sources, *RELATIVE)},
        "source_noise": {s: _noise_at_home(found, s, y) for s in study.sources},
        "strength": found.strength,
        "leaked": found.leaked,
        "reasons": found.reasons,
        "failed": found.failed,
    }


def _noise_at_home(found: Found, source: str, y: np.ndarray) -> float | None:
    """Share of a source's right answers that sign noise turns, mean of its draws."""
    draws = [labels[0] for (s, _, name), labels in found.labels.items() if s == "" and name == source]
    right = found.source_clean[source][0] == y
    return float(np.mean([(labels != y)[right].mean() for labels in draws])) if draws and right.any() else None


def _source(study: Study, name: str, model: Model) -> dict[str, Any]:
    base = studies.innermost(model)
    return {
        "name": name,
        "seen": any(study.sources[s] in list(spec.recipes_in(model)) for s in study.seen if s in study.sources),
        "public": name in study.public,
        "type": type(model).__name__,
        "architecture": type(getattr(base, "architecture", base)).__name__,
        "family": studies.family_of(model),
        "ensemble": len(getattr(model, "members", ())) > 1,
    }


def _attack(study: Study, name: str, attack: Attack) -> dict[str, Any]:
    published = {e.name: e for e in catalogue.entries("attacks")}
    entry = published.get(name) or published.get(type(attack).__name__)
    return {
        "name": name,
        "family": studies.attack_family(attack),
        "year": entry.year if entry else None,
        "reference": entry.reference if entry else "",
        "G": attack.gradients,
        "queries": attack.queries,
        "preparation": attack.preparation if isinstance(attack, Learned) else 0,
        "boundary": "" if attack.semantics.transfers else attack.semantics.returned.value,
        "objective": _objective(attack),
        "role": "white box" if name in study.white_box else "null" if study.is_null(name) else "transfer",
        "seen": name in study.seen,
    }


def _objective(attack: Attack) -> str:
    objective = getattr(attack, "objective", "")
    return objective if isinstance(objective, str) else type(objective).__name__


def _target(name: str, model: Model) -> dict[str, Any]:
    return {
        "name": name,
        "family": studies.family_of(model),
        "exhibit": studies.is_exhibit(model),
        "stochastic": model.stochastic,
        "abstains": abstains(model),
        "strippable": studies.stripped(model) is not None,
        "recipe": spec.canonical(spec.to_dict(model)),
    }
