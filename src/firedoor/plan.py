"""What a run would do: which work is cached, which is to do, and what that costs by a probe of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from firedoor import study as studies
from firedoor.costs import trainable, work_in
from firedoor.craft import Craft
from firedoor.examination import S5_ROW, examination, passes_of
from firedoor.protocols import Attack, Learned, Model
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["plan"]

PROBE = 64  # examples in the probing batch


def plan(study: Study, store: str, workers: int = 1) -> dict[str, Any]:
    """Rows of work with counts and seconds, the sum, and bytes of disk, for so many workers (0: one for each core).

    audit: by target, passes of its tests over those of its own white-box row (APGD-100 with two losses on 512 examples), at most.

    Nothing is trained or crafted; one batch per network is timed, with one thread, as a worker has it.
    """
    threads, workers = torch.get_num_threads(), workers or os.cpu_count() or 1
    torch.set_num_threads(1)
    try:
        found = _plan(study, store)
    finally:
        torch.set_num_threads(threads)
    for row in found["rows"]:
        row["seconds"] /= workers
    return {
        **found,
        "seconds": found["seconds"] / workers,
        "seconds_without_s3": found["seconds_without_s3"] / workers,
        "workers": workers,
    }


def _plan(study: Study, store: str) -> dict[str, Any]:
    place = FileStore(store)
    split = study.images
    probe = _Probe(study)
    models = [*study.sources.values(), *study.targets.values()]
    twins = [studies.other_seed(m) for m in study.targets.values()] if study.same_defence is not False else []
    rows = [
        _training("train", trainable(models), place, probe),
        _training("train for rung S3, at most", _new(twins, models), place, probe),
    ]
    real = {n: a for n, a in study.attacks.items() if not study.asks_no_model(n)}
    every = [(m, a) for m in study.sources.values() for a in real.values()]
    own = {(m, a) for t in study.targets.values() for m in _own_sources(t) for a in study.white_box.values()}
    s3 = [(m.relax(), a) for m in twins for n, a in real.items() if not study.is_null(n)]
    for work, pairs in (("craft transfers", every), ("craft white boxes", list(own)), ("craft for rung S3, at most", s3)):
        rows.append(_crafting(work, pairs, study, place, probe))
    cells = len(study.sources) * len(real) + (len(study.attacks) - len(real))
    asked = sum(study.draws if m.stochastic else 1 for m in study.targets.values())
    forward = probe.forward(study.targets[study.control]) * cells * asked * len(split)
    rows.append(_diagnosing(study, place, probe))
    done = sum(r["to_do"] for r in rows) == 0
    rows.append(
        {"work": "score", "to_do": 0 if done else cells * len(study.targets), "cached": 0, "seconds": 0.0 if done else forward}
    )
    crafted = sum(r["to_do"] for r in rows if r["work"].startswith("craft"))
    weights = sum(r["to_do"] for r in rows if r["work"].startswith("train")) * probe.largest_network
    return {
        "study": study.name,
        "rows": rows,
        "seconds": sum(r["seconds"] for r in rows),
        "seconds_without_s3": sum(r["seconds"] for r in rows if "S3" not in r["work"]),
        "bytes": crafted * split.x[0].numel() * study.shard + weights,
        "audit": {t: passes_of(examination(study, t), len(split)) / S5_ROW for t in study.targets},
        "note": "Rung S3 is run only for targets that the rungs below leave standing. A probe of one batch is no measurement.",
    }


class _Probe:
    """Seconds per example of one forward, and of one forward and backward pass, measured once per architecture."""

    def __init__(self, study: Study) -> None:
        self.data = study.data
        self.known: dict[Any, tuple[float, float]] = {}
        self.largest_network = 0

    def forward(self, model: Model) -> float:
        return self._measure(model)[0]

    def gradient(self, model: Model) -> float:
        return self._measure(model)[1]

    def _measure(self, model: Model) -> tuple[float, float]:
        architecture = getattr(studies.innermost(model), "architecture", None)
        if architecture is None:
            return 0.0, 0.0
        if architecture not in self.known:
            module: nn.Module = architecture.build(self.data.shape, len(self.data.classes))
            self.largest_network = max(self.largest_network, sum(p.numel() * 4 for p in module.parameters()))
            x = torch.zeros(PROBE, *self.data.shape)

            def gradient() -> None:
                leaf = x.clone().requires_grad_()
                torch.autograd.grad(module(leaf).sum(), leaf)

            module.eval()
            with torch.no_grad():
                forward = _best(lambda: module(x))
            self.known[architecture] = forward / PROBE, _best(gradient) / PROBE
        one, two = self.known[architecture]
        members = max(1, len(getattr(model, "members", ())))
        return one * members, two * members


def _training(work: str, recipes: list[Any], store: FileStore, probe: _Probe) -> dict[str, Any]:
    missing = [r for r in recipes if not store.has("model", r.inputs())]
    seconds = sum(work_in(r) * len(r.data.split(r.part)) * probe.gradient(r) * 1.5 for r in missing)  # weights' gradients, too
    return {"work": work, "to_do": len(missing), "cached": len(recipes) - len(missing), "seconds": seconds}


def _crafting(work: str, pairs: list[tuple[Model, Attack]], study: Study, store: FileStore, probe: _Probe) -> dict[str, Any]:
    n, every, seconds = len(study.images), 0, 0.0
    to_do: list[Craft] = []
    for model, attack in pairs:
        crafts = study.crafts(model, attack)
        missing = [c for c in crafts if not store.has("craft", c.inputs())]
        share = len(missing) / max(len(crafts), 1)
        if isinstance(attack, Learned):
            seconds += len(missing) * attack.preparation * probe.gradient(model)
        seconds += share * n * (attack.gradients * probe.gradient(model) + attack.queries * probe.forward(model))
        every += len(crafts)
        to_do += missing
    return {"work": work, "to_do": len(to_do), "cached": every - len(to_do), "seconds": seconds}


def _diagnosing(study: Study, store: FileStore, probe: _Probe) -> dict[str, Any]:
    """The tests of every target, by the passes that they take at most; a pass forward or backward is half a gradient."""
    every = [t.diagnosis for name in study.targets for t in examination(study, name)]
    missing = [d for d in every if not store.has("symptom", d.inputs())]
    n = len(study.images)
    seconds = sum(d.test.passes(min(n, d.n)) * probe.gradient(d.model) / 2 for d in missing)
    return {"work": f"diagnose ({study.audit})", "to_do": len(missing), "cached": len(every) - len(missing), "seconds": seconds}


def _own_sources(model: Model) -> list[Model]:
    bare = studies.stripped(model)
    return [model.relax(), *([model] if model.relax() != model else []), *([bare] if bare is not None else [])]


def _new(models: Iterable[Model], known: Iterable[Model]) -> list[Any]:
    old = set(trainable(known))
    return [r for r in trainable(models) if r not in old]


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
