"""What a defence costs: training and inference, measured in the run and set against the undefended control."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from firedoor import device, spec
from firedoor.craft import Craft
from firedoor.defences.losses.stored import crafts_for
from firedoor.errors import ModelRefused, SetupError
from firedoor.protocols import Attack, Classifier, Model
from firedoor.spec import fingerprint
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["costs_of", "trainable", "work_in"]

TURNS = 5
LEAST_SECONDS = 0.03  # of the control in each turn


def trainable(models: Iterable[Model]) -> list[Any]:
    """Every recipe inside these models that training makes, without repeats, those that others need first."""
    found: dict[Any, None] = {}
    for model in models:
        for recipe in reversed(list(spec.recipes_in(model))):
            if hasattr(type(recipe), "inputs") and hasattr(recipe, "fit"):
                found.setdefault(recipe)
    return list(found)


def work_in(recipe: Any) -> int:
    """Gradient passes over the training set, roughly: what takes longest is to start first."""
    inner = sum(a.gradients for a in spec.recipes_in(recipe.fit) if isinstance(a, Attack))
    return int(recipe.fit.epochs * (1 + inner))


def costs_of(study: Study, store: FileStore, fail: Callable[[str, Exception], None]) -> dict[str, dict[str, float | None]]:
    """By target: seconds and multiples of the control. Training counts teachers, members, sources that the defence trained on, and their crafts.

    A target that raises when it is timed is told to `fail`, and has no inference figures.
    """
    control = study.targets[study.control]
    own = _training(control, store)
    found: dict[str, dict[str, float | None]] = {}
    for name, model in study.targets.items():
        seconds, passes = _training(model, store)
        each: float | None
        multiple: float | None
        try:
            each, multiple = _inference(model, control, study, store)
        except SetupError:
            raise
        except (Exception, SystemExit) as error:
            fail(f"timing|*|{name}", error if isinstance(error, Exception) else ModelRefused("it tried to end the program"))
            each = multiple = None
        found[name] = {
            "train_seconds": seconds,
            "train_multiple": seconds / own[0] if own[0] else None,
            "train_passes_multiple": passes / own[1] if own[1] else None,
            "inference_seconds_per_image": each,
            "inference_multiple": multiple,
        }
    return found


def _training(model: Model, store: FileStore) -> tuple[float, float]:
    """Seconds, and passes over examples, of every network in `model` and of every craft that one was trained on, each once."""
    seconds = passes = 0.0
    crafts: set[Craft] = set()
    for recipe in trainable([model]):
        crafts.update(c for part in spec.recipes_in(recipe.fit) for c in crafts_for(part))
        made = store.peek("model", recipe.inputs())
        if made is not None:
            seconds += float(str(made[1]["seconds"]))
            passes += float(str(made[1]["passes"])) * recipe.fit.epochs * len(recipe.data.split(recipe.part))
    for craft in crafts:
        made = store.peek("craft", craft.inputs())
        if made is not None:
            seconds += float(str(made[1]["seconds"]))
            passes += float(str(made[1]["gradients"])) * len(craft.data.split(craft.part))
    return seconds, passes


def _inference(model: Model, control: Model, study: Study, store: FileStore) -> tuple[float, float]:
    """Seconds per image, and the ratio to the control measured in turns; kept in the store as it was measured."""
    inputs: dict[str, object] = {"model": fingerprint(model), "control": fingerprint(control), "data": study.data.digest()}

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        x = study.images.x[:250].to(device.current())
        one, two = store.live(model), store.live(control)
        calls = max(1, round(LEAST_SECONDS / max(_timed(two, x, 1), 1e-6)))
        pairs = [(_timed(one, x, calls), _timed(two, x, calls)) for _ in range(TURNS)]
        ratio = 1.0 if model == control else statistics.median(a / b for a, b in pairs)
        return {"n": torch.tensor([len(x)])}, {"each": statistics.median(a for a, _ in pairs) / len(x), "ratio": ratio}

    record = store.get("timing", inputs, make)[1]
    return float(str(record["each"])), float(str(record["ratio"]))


def _timed(model: Classifier, x: Tensor, calls: int) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(calls):
            float(model(x).sum())  # waits for the device
    return (time.perf_counter() - began) / calls
