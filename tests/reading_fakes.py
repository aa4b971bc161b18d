"""A matrix built by hand, cell by cell, for the tests of what is read off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from firedoor.matrix import Matrix

CLASSES = 10
RELATIVE = ("same defence", "stripped", "itself", "itself, naive", "no source")
RELATIVE_RUNGS = {"same defence": "S3", "stripped": "stripped", "itself": "S5", "itself, naive": "naive", "no source": "null"}
NOISE_DRAWS = 5


@dataclass(frozen=True)
class Source:
    """What a study says of a source."""

    name: str
    rung: str = "S2"
    seen: bool = False
    architecture: str = "MLP"
    family: str = "none"
    ensemble: bool = False


@dataclass(frozen=True)
class Attack:
    """What a study says of an attack. role: transfer, white box or null."""

    name: str
    role: str = "transfer"
    family: str = "gradient"
    seen: bool = False
    objective: str = "cross_entropy"


@dataclass(frozen=True)
class Target:
    """What a study says of a target. relaxed: its relax is another model than itself. abstains: label 10 means rejected."""

    name: str
    random: bool = False
    relaxed: bool = False
    strippable: bool = False
    abstains: bool = False
    family: str = "none"
    exhibit: bool = False
    recipe: str = ""


@dataclass
class Draft:
    """Labels by cell; what is not set was not run. Clean answers are right and every attack works at home until something else is set.

    Labels of a target that is not random are (n,), of a random one (n, draws).
    """

    y: np.ndarray
    targets: Sequence[Target]
    sources: Sequence[Source] = (Source("s"),)
    attacks: Sequence[Attack] = (Attack("a"),)
    draws: int = 20
    cells: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    clean: dict[str, np.ndarray] = field(default_factory=dict)
    noise: dict[str, np.ndarray] = field(default_factory=dict)  # (noise draws, n)
    source_clean: dict[str, np.ndarray] = field(default_factory=dict)
    home: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    own_clean: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    own_home: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    source_noise: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def wrong_where(self, fooled: np.ndarray) -> np.ndarray:
        """Labels: another class where `fooled`, else the true one. (n,) or (n, draws)."""
        y = self.y if fooled.ndim == 1 else self.y[:, None]
        return np.where(fooled, (y + 1) % CLASSES, y)

    def fool(self, source: str, attack: str, target: str, fooled: Sequence[bool] | np.ndarray) -> None:
        """Set a cell: wrong where `fooled`, right elsewhere."""
        self.cells[source, attack, target] = self.wrong_where(np.asarray(fooled, dtype=bool))

    def matrix(self) -> Matrix:
        """The matrix, as a run would leave it."""
        n = len(self.y)
        sources, attacks = [*(s.name for s in self.sources), *RELATIVE], [a.name for a in self.attacks]
        targets = [t.name for t in self.targets]
        random = [t.name for t in self.targets if t.random]
        wrong = (self.y + 1) % CLASSES
        predicted = np.full((len(sources), len(attacks), len(targets), n), -1)
        drawn = np.full((len(sources), len(attacks), len(random), n, self.draws), -1)
        home = np.full((len(sources), len(attacks), n), -1)
        source_clean = np.full((len(sources), n), -1)
        own_home = np.full((len(RELATIVE), len(attacks), len(targets), n), -1)
        own_clean = np.full((len(RELATIVE), len(targets), n), -1)
        for (s, a, t), labels in self.cells.items():
            i, j, k = sources.index(s), attacks.index(a), targets.index(t)
            predicted[i, j, k] = labels if t not in random else labels[:, 0]
            if t in random:
                drawn[i, j, random.index(t)] = labels
            if s in RELATIVE and s != "no source":
                same = predicted[i, j, k] if s == "itself" else wrong  # E1: the white box answers as it was crafted
                own_home[RELATIVE.index(s), j, k] = self.own_home.get((s, a, t), same)
                own_clean[RELATIVE.index(s), k] = self.own_clean.get((s, t), self.y)
            elif s != "no source":
                home[i, j] = self.home.get((s, a), wrong)
        for i, source in enumerate(self.sources):
            source_clean[i] = self.source_clean.get(source.name, self.y)
        clean = [np.asarray(self.clean.get(t, self.y)) for t in targets]
        noise = [self.noise.get(t, np.tile(self.y, (NOISE_DRAWS, 1))) for t in targets]
        variables: dict[str, Any] = {
            "predicted": (("source", "attack", "target", "example"), predicted.astype(np.int8)),
            "clean": (("target", "example"), np.array([c if c.ndim == 1 else c[:, 0] for c in clean]).astype(np.int8)),
            "noise": (("noise_draw", "target", "example"), np.stack(noise, axis=1).astype(np.int8)),
            "source_clean": (("source", "example"), source_clean.astype(np.int8)),
            "home": (("source", "attack", "example"), home.astype(np.int8)),
            "own_home": (("relative_source", "attack", "target", "example"), own_home.astype(np.int8)),
            "own_clean": (("relative_source", "target", "example"), own_clean.astype(np.int8)),
            "y": (("example",), self.y.astype(np.int8)),
            "id": (("example",), np.array([f"example/{i:04d}" for i in range(n)])),
        }
        coords: dict[str, Any] = {"source": sources, "attack": attacks, "target": targets, "relative_source": list(RELATIVE)}
        if random:
            again = [np.broadcast_to(c if c.ndim == 2 else c[:, None], (n, self.draws)) for c in clean]
            variables["draws"] = (("source", "attack", "random_target", "example", "draw"), drawn.astype(np.int8))
            variables["clean_draws"] = (
                ("random_target", "example", "draw"),
                np.stack([again[targets.index(t)] for t in random]).astype(np.int8),
            )
            coords["random_target"] = random
        return Matrix(xr.Dataset(variables, coords=coords), self._meta(sources, targets))

    def _meta(self, sources: list[str], targets: list[str]) -> dict[str, Any]:
        rungs = {s.name: s.rung for s in self.sources} | RELATIVE_RUNGS
        return {
            "schema": 1,
            "name": "by hand",
            "description": "",
            "seed": 0,
            "draws": self.draws,
            "bar": 0.5,
            "control": targets[0],
            "classes": [str(k) for k in range(CLASSES)],
            "relative": list(RELATIVE),
            "threat": {"norm": "Linf", "eps": 8 / 255, "targeted": False},
            "eight_bit": True,
            "data": {"type": "Digits", "digest": "0"},
            "ids_digest": "0",
            "sources": [
                {
                    "name": s.name,
                    "seen": s.seen,
                    "public": s.rung == "S0",
                    "type": "Ensemble" if s.ensemble else "Trained",
                    "architecture": s.architecture,
                    "family": s.family,
                    "ensemble": s.ensemble,
                }
                for s in self.sources
            ],
            "attacks": [
                {
                    "name": a.name,
                    "family": a.family,
                    "year": 2018,
                    "reference": "",
                    "G": 10,
                    "objective": a.objective,
                    "role": a.role,
                    "seen": a.seen,
                }
                for a in self.attacks
            ],
            "targets": [
                {
                    "name": t.name,
                    "family": t.family,
                    "exhibit": t.exhibit,
                    "stochastic": t.random,
                    "strippable": t.strippable,
                    "abstains": t.abstains,
                    "recipe": t.recipe,
                }
                for t in self.targets
            ],
            "relaxed": [t.name for t in self.targets if t.relaxed],
            "rungs": {s: dict.fromkeys(targets, rungs[s]) for s in sources},
            "source_noise": {s.name: self.source_noise.get(s.name, 0.0) for s in self.sources},
            "reasons": dict(self.reasons),
            "failed": dict(self.failed),
        }


def mask(n: int, *true: int) -> np.ndarray:
    """(n,) bool, true at the given places."""
    found = np.zeros(n, dtype=bool)
    found[list(true)] = True
    return found


def first(n: int, k: int, start: int = 0) -> np.ndarray:
    """(n,) bool, true at k places from `start` on."""
    return mask(n, *range(start, start + k))
