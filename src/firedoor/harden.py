"""The command that trains one network of a study: in this process, or in all that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from firedoor import catalogue
from firedoor.errors import SpecError
from firedoor.models.trained import Trained
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["first_process", "train"]


def first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def train(
    study: Study,
    name: str,
    store: FileStore,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Train the target or source `name`, or find it in the store. A training that was killed goes on from its last checkpoint.

    Returns its name, the kind of work, seconds, passes per example and the file of events. Errors: SpecError if there is no such
    network, or it is put together of others.
    """
    known = {**study.sources, **study.targets}
    if name not in known:
        raise SpecError(f"the study has no target or source {name!r}.{catalogue.nearest(name, known)} It has: {', '.join(known)}.")
    model = known[name]
    if not isinstance(model, Trained):
        raise SpecError(
            f"train takes a network with a training of its own, got {name!r}, a {type(model).__name__}. "
            "Name the network under it, or use `firedoor run`, which trains all that a study needs."
        )
    inputs = model.inputs()
    found, new = store.peek("model", inputs), False
    if found is None:
        made, new = model.make(store, lambda done, steps: progress(f"training {name}", done, steps)), True
        found = store.get("model", inputs, lambda: made) if first_process() else made
    events = store.unfinished("model", inputs).events
    return {"name": name, "trained": "now" if new else "before", **found[1], "events": str(events), "store": str(store.root)}
