"""What a defence costs: training and inference, measured in the run and set against the undefended control."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firedoor import device, spec
from firedoor.craft import Craft
from firedoor.defences.losses.stored import crafts_for
from firedoor.errors import ModelRefused, SetupError
from firedoor.memory import Held
from firedoor.protocols import Attack, Classifier, Model
from firedoor.spec import fingerprint
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["costs_of", "trainable", "work_in"]

TURNS = 5
FEW = 64  # examples that a craft is timed on
ASKED = 250  # images that are answered at once
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

    Seconds are those of the run, whatever else the machine did then. Multiples are measured in turns with the control instead: the time
    of a batch, of either, for each pass that it makes, times the passes that the training made. Bytes are the most that the tensors of
    one batch's training hold at once, weights, gradients and optimiser included and stored images not, of the largest training that a
    target needs; and of answering 250 images. A target that raises when it is timed is told to `fail`, and has no inference figures.
    """
    control = study.targets[study.control]
    found: dict[str, dict[str, float | None]] = {}
    own = _training(control, study, store)
    for name, model in study.targets.items():
        parts = _training(model, study, store)
        each: float | None
        multiple: float | None
        answering: float | None
        try:
            each, multiple = _inference(model, control, study, store)
            answering = _answering_bytes(model, study, store)
        except SetupError:
            raise
        except (Exception, SystemExit) as error:
            fail(f"timing|*|{name}", error if isinstance(error, Exception) else ModelRefused("it tried to end the program"))
            each = multiple = answering = None
        found[name] = {
            "train_seconds": sum(p.seconds for p in parts),
            "train_multiple": sum(p.multiple for p in parts) if own else None,
            "train_passes_multiple": sum(p.passes for p in parts) / own[0].passes if own and own[0].passes else None,
            "inference_seconds_per_image": each,
            "inference_multiple": multiple,
            "train_memory_bytes": max((p.memory for p in parts if p.memory is not None), default=None),
            "inference_memory_bytes": answering,
        }
    return found


@dataclass(frozen=True)
class _Part:
    """One training, or one craft that a training read: seconds of the run, passes over examples, time as a multiple of the control's, bytes."""

    seconds: float
    passes: float
    multiple: float
    memory: float | None


def _training(model: Model, study: Study, store: FileStore) -> list[_Part]:
    """Every network in `model` that was trained and every craft that one was trained on, each once; nothing for what was not made here."""
    control = next(iter(trainable([study.targets[study.control]])), None)
    made = {recipe: ("model", _passes(recipe, store)) for recipe in trainable([model])}
    crafts = dict.fromkeys(c for recipe in made for part in spec.recipes_in(recipe.fit) for c in crafts_for(part))
    made |= {c: ("craft", float(c.attack.gradients) * len(c.data.split(c.part))) for c in crafts}
    parts = []
    for recipe, (kind, passes) in made.items():
        kept = store.peek(kind, recipe.inputs())
        if kept is not None and control is not None:
            seconds = float(str(kept[1]["seconds"]))
            multiple = _multiple(recipe, kind, passes, seconds, control, store)
            parts.append(_Part(seconds, passes, multiple, _training_bytes(recipe, store) if kind == "model" else None))
    return parts


def _passes(recipe: Any, store: FileStore) -> float:
    kept = store.peek("model", recipe.inputs())
    each = float(str(kept[1]["passes"])) if kept is not None else 0.0
    return each * float(recipe.fit.epochs) * len(recipe.data.split(recipe.part))


def _multiple(recipe: Any, kind: str, passes: float, seconds: float, control: Any, store: FileStore) -> float:
    """What this took over what the training of the control took: measured in turns, or from the run where it cannot be done again."""
    whole, kept = _passes(control, store), store.peek("model", control.inputs())
    if recipe == control:
        return 1.0
    from_run = seconds / max(float(str(kept[1]["seconds"])), 1e-9) if kept is not None else 0.0
    if not whole or (kind == "model" and not _paced(recipe)):
        return from_run

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        one = _craft_clock(recipe, store) if kind == "craft" else _training_clock(recipe, store)
        two = _training_clock(control, store)
        one(), two()  # the first calls build what later ones find
        ratios = [one() / two() for _ in range(TURNS)]
        return {"n": torch.tensor([TURNS])}, {"ratio": statistics.median(ratios)}

    inputs: dict[str, object] = {"training": fingerprint(recipe), "control": fingerprint(control)}
    try:
        return float(str(store.get("timing", inputs, make)[1]["ratio"])) * passes / whole
    except SetupError:
        raise
    except Exception:  # a first batch at the last rate may break a loss: no reason to lose the run
        return from_run


def _paced(recipe: Any) -> bool:
    return hasattr(recipe, "begin") and hasattr(recipe.fit, "pace")


def _training_bytes(recipe: Any, store: FileStore) -> float | None:
    """Bytes that the first two batches of a training hold at once; None where they cannot be taken again."""
    if not _paced(recipe):
        return None

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        held = Held()
        with held:
            module = recipe.begin(store)
        step = recipe.fit.pace(module, recipe.data.split(recipe.part), store, recipe.seed)
        with held:
            step()
            step()
        return {"n": torch.tensor([2])}, {"bytes": held.most}

    try:
        return float(str(store.get("memory", {"training": fingerprint(recipe)}, make)[1]["bytes"]))
    except SetupError:
        raise
    except Exception:  # as for its time: no reason to lose the run
        return None


def _answering_bytes(model: Model, study: Study, store: FileStore) -> float:
    """Bytes that a model holds at once from being loaded to having answered."""

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        held, x = Held(), study.images.x[:ASKED].to(device.current())
        with held, torch.no_grad():
            model.load(store)(x)
        return {"n": torch.tensor([len(x)])}, {"bytes": held.most}

    inputs: dict[str, object] = {"model": fingerprint(model), "data": study.data.digest()}
    return float(str(store.get("memory", inputs, make)[1]["bytes"]))


def _training_clock(recipe: Any, store: FileStore) -> Callable[[], float]:
    """Seconds of one batch, per pass over an example."""
    step = recipe.fit.pace(recipe.begin(store), recipe.data.split(recipe.part), store, recipe.seed)
    size = min(int(recipe.fit.batch_size), len(recipe.data.split(recipe.part)))

    def clock() -> float:
        began = time.perf_counter()
        passes = float(step())
        return (time.perf_counter() - began) / max(passes * size, 1e-9)

    return clock


def _craft_clock(craft: Craft, store: FileStore) -> Callable[[], float]:
    """Seconds of crafting a few examples, per gradient of an example."""
    few = replace(craft, start=0, stop=FEW)
    work = max(craft.attack.gradients, 1) * min(FEW, len(craft.data.split(craft.part)))
    return lambda: float(str(few.make(store)[1]["seconds"])) / work


def _inference(model: Model, control: Model, study: Study, store: FileStore) -> tuple[float, float]:
    """Seconds per image, and the ratio to the control measured in turns; kept in the store as it was measured."""
    inputs: dict[str, object] = {"model": fingerprint(model), "control": fingerprint(control), "data": study.data.digest()}

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        x = study.images.x[:ASKED].to(device.current())
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
