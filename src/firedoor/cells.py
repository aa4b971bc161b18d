"""What a run is made of, as recipes: the answers of one model, and one test for false security. Each is made once and stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firedoor import guard
from firedoor.craft import Craft, predict
from firedoor.protocols import Classifier, Dataset, Diagnostic, Model, Symptom
from firedoor.spec import fingerprint, to_dict
from firedoor.store import FileStore

__all__ = ["Answers", "Diagnosis", "counted"]


@dataclass(frozen=True)
class Answers:
    """The labels that `model` gives to one craft, or (None) to the clean examples of a part, in `draws` independent draws.

    `first`: only so many of the clean examples; None for all.
    """

    model: Model
    craft: Craft | None
    data: Dataset
    part: str = "evaluation"
    draws: int = 1
    seed: int = 0
    first: int | None = None

    def load(self, store: FileStore) -> np.ndarray:
        """(draws, n) int16; -1 where the logits are not finite."""
        split = self.data.split(self.part)[slice(0, self.first)]
        x, ids, judged = split.x, split.ids, ""
        if self.craft is not None:
            crafted = store.craft(self.craft)
            x, ids, judged = crafted.x, crafted.ids, crafted.digest

        def make() -> tuple[dict[str, Tensor], dict[str, object]]:
            live = store.live(self.model)
            with guard.no_side_effects(live):
                rows = [predict(live, x, ids, self.seed, draw, classes=len(self.data.classes)) for draw in range(self.draws)]
            return {"labels": torch.stack(rows).to(torch.int16)}, {"x_adv": judged}

        tensors, _ = store.get("answers", self.inputs(), make, lambda record: record.get("x_adv") == judged)
        return np.asarray(tensors["labels"].numpy())

    def inputs(self) -> dict[str, object]:
        """All that the labels depend on. What was judged is in the record: answers to other bytes are given again."""
        some: dict[str, object] = {} if self.first is None else {"first": self.first}
        return some | {
            "model": fingerprint(self.model),
            "craft": fingerprint(self.craft),
            "data": self.data.digest(),
            "part": self.part,
            "draws": self.draws,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Diagnosis:
    """One live test for false security on the first `n` examples of the evaluation part."""

    test: Diagnostic
    model: Model
    data: Dataset
    n: int

    def load(self, store: FileStore) -> Symptom:
        """The symptom, from the store or found now."""

        def make() -> tuple[dict[str, Tensor], dict[str, object]]:
            with counted(store.live(self.model)) as (live, passes):
                symptom = self.test(live, self.data.split("evaluation")[slice(0, self.n)])
            found = replace(symptom, passes=sum(passes))
            return {"n": torch.tensor([found.n])}, {"symptom": {**vars(found), "examples": list(found.examples)}}

        record = store.get("symptom", self.inputs(), make)[1]["symptom"]
        assert isinstance(record, dict)
        return Symptom(**{**record, "examples": tuple(record["examples"])})

    def inputs(self) -> dict[str, object]:
        """All that the symptom depends on."""
        return {"test": to_dict(self.test), "model": fingerprint(self.model), "data": self.data.digest(), "n": self.n}


@contextmanager
def counted(model: Classifier) -> Iterator[tuple[Classifier, list[int]]]:
    """The model, and a list that grows by the rows of every forward and backward pass through it. Copies of it count too."""
    passes: list[int] = []

    def count(_: Any, __: Any, logits: Any) -> None:
        if isinstance(logits, Tensor) and logits.dim():
            passes.append(len(logits))
            if logits.requires_grad:
                logits.register_hook(lambda g: passes.append(len(g)))  # type: ignore[no-untyped-call]

    if not isinstance(model, nn.Module):

        def ask(x: Tensor) -> Tensor:
            logits = model(x)
            count(None, None, logits)
            return logits

        yield ask, passes
        return
    hook = model.register_forward_hook(count)
    try:
        yield model, passes
    finally:
        hook.remove()
