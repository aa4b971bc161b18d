"""Content-addressed plain files: an object is named by what it is a function of, written whole or not at all, checked on every read.

Nothing read back is ever a pickle: tensors are safetensors, the record is JSON in the header.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from firedoor.craft import Craft, Crafted
from firedoor.errors import StoreError
from firedoor.files import write_atomically
from firedoor.protocols import Classifier, Model
from firedoor.spec import canonical

__all__ = ["FileStore", "key_of"]

SCHEMA = 1
CHECKPOINT = "checkpoint"
CRAFTS_KEPT = 16
WRITES = 5
Made = tuple[dict[str, Tensor], dict[str, object]]


def key_of(kind: str, inputs: dict[str, object]) -> str:
    """sha256 (hex) of everything that an object is a function of."""
    return hashlib.sha256(canonical({"schema": SCHEMA, "kind": kind, "inputs": inputs}).encode()).hexdigest()


class UnfinishedObject:
    """What is kept while an object is being made: its last checkpoint, and a line of events.jsonl for each thing that happened."""

    def __init__(self, store: FileStore, kind: str, inputs: dict[str, object]) -> None:
        self._store = store
        self._inputs: dict[str, object] = {"of": kind, "inputs": inputs}
        self.events = store.root / "events" / f"{key_of(kind, inputs)}.jsonl"

    def save(self, tensors: dict[str, Tensor], record: dict[str, object]) -> None:
        """Replaces the last checkpoint, whole or not at all."""
        self._store._put(CHECKPOINT, self._inputs, tensors, record)

    def load(self) -> Made | None:
        """The last checkpoint, if there is a sound one."""
        return self._store.peek(CHECKPOINT, self._inputs)

    def clear(self) -> None:
        """The work is done: forget the checkpoint."""
        self._store._file(key_of(CHECKPOINT, self._inputs)).unlink(missing_ok=True)

    def note(self, event: dict[str, object]) -> None:
        """Append a line to events.jsonl."""
        try:
            self.events.parent.mkdir(exist_ok=True)
            with self.events.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        except OSError as error:
            raise StoreError(f"{self.events} cannot be written ({error.strerror}). Free space, or give another --store.") from None


class FileStore:
    """A folder of objects. Any number of processes may share it: outputs are deterministic and renames atomic.

    Errors: StoreError (exit 4) where the folder cannot be read or written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._live: dict[Model, Classifier] = {}
        self._crafts: dict[Craft, Crafted] = {}
        try:
            (self.root / "objects").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be written ({error.strerror}). Give another folder with --store."
            ) from None

    def get(
        self,
        kind: str,
        inputs: dict[str, object],
        make: Callable[[], Made],
        current: Callable[[dict[str, object]], bool] | None = None,
    ) -> Made:
        """The tensors and the record under this key; made and stored if they are not there, or if the record is not `current`."""
        found = self.peek(kind, inputs)
        if found is None or (current is not None and not current(found[1])):
            tensors, record = make()
            for _ in range(WRITES):  # another process that has just read a damaged copy may set this one aside
                self._put(kind, inputs, tensors, record)
                found = self.peek(kind, inputs)
                if found is not None:
                    break
        if found is None:
            raise StoreError(f"an object written to {self.root} could not be read back. Check the disk, or give another --store.")
        return found

    def unfinished(self, kind: str, inputs: dict[str, object]) -> UnfinishedObject:
        """Where the making of this object may keep checkpoints and events."""
        return UnfinishedObject(self, kind, inputs)

    def live(self, model: Model) -> Classifier:
        """The loaded classifier, kept as long as this object."""
        if model not in self._live:
            self._live[model] = model.load(self)
        return self._live[model]

    def craft(self, craft: Craft) -> Crafted:
        """The loaded examples; the last few are kept."""
        if craft not in self._crafts:
            while len(self._crafts) >= CRAFTS_KEPT:
                self._crafts.pop(next(iter(self._crafts)))
            self._crafts[craft] = craft.load(self)
        return self._crafts[craft]

    def has(self, kind: str, inputs: dict[str, object]) -> bool:
        """Whether the object is there (it is checked when it is read)."""
        return self._file(key_of(kind, inputs)).exists()

    def peek(self, kind: str, inputs: dict[str, object]) -> Made | None:
        """The object if it is there and sound; a damaged one is set aside, and counts as missing."""
        key = key_of(kind, inputs)
        file = self._file(key)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{file} cannot be read ({error.strerror}). Check its permissions, or give another --store.") from None
        tensors = _read(data, key)
        if tensors is None:
            self._quarantine(file, key)
        return tensors

    def _file(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key / "arrays.safetensors"

    def _put(self, kind: str, inputs: dict[str, object], tensors: dict[str, Tensor], record: dict[str, object]) -> None:
        key = key_of(kind, inputs)
        plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        header = {"schema": SCHEMA, "kind": kind, "key": key, "inputs": inputs, "record": {**record, "digest": _digest(plain)}}
        text = canonical(header)
        data = safetensors.torch.save(plain, metadata={"firedoor": _sealed(text)})
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
        except OSError as error:
            raise StoreError(
                f"{file} cannot be written ({error.strerror}, {len(data)} bytes). Free space, or give another --store."
            ) from None

    def _quarantine(self, file: Path, key: str) -> None:
        aside = self.root / "quarantine"
        try:
            aside.mkdir(exist_ok=True)
            os.replace(file, aside / f"{key}.{secrets.token_hex(4)}")
        except FileNotFoundError:
            return  # another process was quicker
        except OSError as error:
            raise StoreError(
                f"{file} is damaged and cannot be set aside ({error.strerror}). Check its permissions, or give another --store."
            ) from None


def _digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        total.update(f"{name} {t.dtype} {tuple(t.shape)} ".encode())
        total.update(t.numpy().tobytes())
    return total.hexdigest()


def _sealed(text: str) -> str:
    """A header behind its own sum: one entry, as safetensors writes several in an order that differs from run to run."""
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def _read(data: bytes, key: str) -> Made | None:
    """Tensors and record of an object's bytes; None if anything about them is not as it was written."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        sealed = metadata["firedoor"]
        text = sealed.partition(" ")[2]
        if sealed != _sealed(text):
            return None
        header = json.loads(text)
        if header["key"] != key or key_of(header["kind"], header["inputs"]) != key:
            return None
        tensors = safetensors.torch.load(data)
        if _digest(tensors) != header["record"]["digest"]:
            return None
        return tensors, header["record"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError):
        return None
