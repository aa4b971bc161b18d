"""The adversarial examples of one source and one attack on one shard of a data set: made once, stored in 8 bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.compile import Precision, compiled
from firedoor.errors import AccessError, ModelRefused
from firedoor.protocols import Attack, Classifier, Dataset, Learned, Model, Prepared, Split, Store
from firedoor.spec import fingerprint, to_dict

__all__ = ["Craft", "Crafted", "predict"]

BATCH = 250  # examples at a time on a CPU


@dataclass(frozen=True)
class Crafted:
    """x: (n, *shape) float32 as stored, so exactly what every target sees; home: (n,) the source's labels on it, -1 without a source."""

    x: Tensor
    home: Tensor
    ids: tuple[str, ...]
    digest: str
    seconds: float


@dataclass(frozen=True)
class Craft:
    """What `attack` on `source` makes of the examples start..stop of one part of `data`. `source` is None for null attacks.

    A targeted attack gets a y_target that is fixed per id. The attack runs on a compiled copy of the source, in `precision`; `home` is what the source itself says of the outcome.
    """

    source: Model | None
    attack: Attack
    data: Dataset
    part: str = "evaluation"
    start: int = 0
    stop: int | None = None
    seed: int = 0
    precision: Precision = "exact"

    def inputs(self) -> dict[str, object]:
        """All that the outcome depends on; the store derives the key from it."""
        return {"craft": to_dict(self, digests=True)}

    def load(self, store: Store) -> Crafted:
        """The examples, from the store or crafted now.

        Errors: AccessError if the attack needs more than the source gives; BudgetError if its output leaves the threat.
        """
        if self.source is not None and self.attack.needs > self.source.access:
            raise AccessError(
                f"{type(self.attack).__name__} needs {self.attack.needs.name}, but the source gives {self.source.access.name}. "
                "Attack a source that gives more, or use an attack that needs less."
            )
        tensors, record = store.get("craft", self.inputs(), lambda: self.make(store))
        stored = tensors["x"]
        x = stored.float() / 255 if stored.dtype == torch.uint8 else stored
        ids = self.data.split(self.part)[self.start : self.stop].ids
        return Crafted(x, tensors["home"].long(), ids, str(record["digest"]), float(str(record["seconds"])))

    def make(self, store: Store) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Craft now: the examples as stored, and the seconds that the attack took. Errors: as `load`."""
        split: Split = self.data.split(self.part)[self.start : self.stop]
        model: Classifier = store.live(self.source) if self.source is not None else _no_model
        began = time.perf_counter()
        fast = compiled(model, self.precision)
        attack = self.attack.load(store) if isinstance(self.attack, Prepared) else self.attack
        with guard.no_side_effects(fast):
            x_adv = torch.cat([self._attacked(attack, fast, split[rows]) for rows in _batches(len(split), self.attack)])
            seconds = time.perf_counter() - began
        threat = self.attack.threat
        with guard.no_side_effects(model):
            if self.data.eight_bit:
                stored = threat.to_8bit(x_adv, split.x)
                seen = stored.float() / 255
            else:
                threat.check(x_adv, split.x)
                stored = seen = x_adv
            home = torch.full((len(split),), -1)
            if self.source is not None:
                home = predict(model, seen, split.ids, self.seed, classes=len(self.data.classes))
        return {"x": stored, "home": home.to(torch.int16)}, {"seconds": seconds, "gradients": self.attack.gradients}

    def _attacked(self, attack: Callable[[Classifier, Tensor, Tensor], Tensor], model: Classifier, batch: Split) -> Tensor:
        """One batch. Streams are keyed by example, so how a shard is cut does not matter."""
        y = self._wanted(batch) if self.attack.threat.targeted else batch.y
        with seed.streams(self.seed, batch.ids, purpose=fingerprint(replace(self, start=0, stop=None))):
            return attack(model, batch.x.to(device.current(), copy=True), y.to(device.current(), copy=True)).cpu()

    def _wanted(self, batch: Split) -> Tensor:
        """y_target: another class, drawn once for each id, so that every attack and source aims at the same."""
        classes = len(self.data.classes)
        with seed.streams(self.seed, batch.ids, purpose="y_target"):
            return (batch.y + 1 + seed.integers(batch.x, classes - 1)) % classes


def _batches(n: int, attack: Attack) -> list[slice]:
    """Batches that fit a processor's cache; the whole shard for attacks that mix their batch, or train before the first example."""
    size = (
        n if attack.semantics.mixes_batch or isinstance(attack, Learned) else BATCH if device.current().type == "cpu" else 8 * BATCH
    )
    return [slice(i, i + size) for i in range(0, n, max(size, 1))] or [slice(0, 0)]


@torch.no_grad()
def predict(
    model: Classifier, x: Tensor, ids: tuple[str, ...], key: int, draw: int = 0, batch_size: int = BATCH, classes: int | None = None
) -> Tensor:
    """Labels (n,) int64; -1 where the logits are not finite. A random model is drawn afresh for each (key, id, draw).

    Errors: ModelRefused for anything but logits (n, k), the same k throughout; k is `classes`, where given, or one more.
    """
    labels = []
    wanted: tuple[int, ...] = (classes, classes + 1) if classes is not None else ()
    for i in range(0, len(x), batch_size):
        with seed.streams(key, ids[i : i + batch_size], draw=draw, purpose="predict"):
            logits = model(x[i : i + batch_size].to(device.current())).cpu()
        rows = min(batch_size, len(x) - i)
        if logits.dim() != 2 or len(logits) != rows or (wanted and logits.shape[1] not in wanted):
            k = " or ".join(map(str, wanted)) or "k"
            raise ModelRefused(f"it must give logits of shape ({rows}, {k}), got {tuple(logits.shape)}. Check its output.")
        wanted = (logits.shape[1],)
        label = logits.argmax(1)
        labels.append(torch.where(torch.isfinite(logits).all(1), label, torch.full_like(label, -1)))
    return torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)


def _no_model(x: Tensor) -> Tensor:
    raise AccessError("a null attack must not ask a model anything.")
