"""What came out: predicted labels on labelled axes source x attack x target x example x draw. Rates are derived, never stored.

-1 means not run, or that the model gave no finite answer; it never counts as right or wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firedoor.errors import SpecError, StoreError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Matrix", "open_matrix"]

SPARSEST = 1000  # at most this many cells of the axes for each one stored, so that a small file cannot ask for all memory
Shares = np.ndarray  # (n,) float64: the share of draws that were right, 0 or 1 for a deterministic target


@dataclass(frozen=True)
class Matrix:
    """An xarray Dataset and the study's facts (`meta`) that its rates need.

    Variables: predicted (source, attack, target, example), draws (source, attack, random_target, example, draw), clean (target,
    example), clean_draws (random_target, example, draw), noise (noise_draw, target, example), source_clean (source, example), home
    (source, attack, example), own_clean and own_home for the rows whose source differs by target; y and id (example).
    """

    data: xr.Dataset
    meta: dict[str, Any]

    @cached_property
    def y(self) -> np.ndarray:
        """(n,) true labels."""
        return np.asarray(self.data["y"].values)

    @cached_property
    def ids(self) -> list[str]:
        """The example ids, in order."""
        return [str(i) for i in self.data["id"].values]

    @cached_property
    def sources(self) -> list[str]:
        """Source rows, the relative ones last."""
        return [str(s) for s in self.data["source"].values]

    @cached_property
    def attacks(self) -> list[str]:
        """Attack columns, the white-box ones last."""
        return [str(a) for a in self.data["attack"].values]

    @cached_property
    def targets(self) -> list[str]:
        """Targets in study order."""
        return [str(t) for t in self.data["target"].values]

    def right(self, source: str, attack: str, target: str) -> Shares | None:
        """(n,) share of draws with the true label; None where the cell was not run or holds a -1."""
        at = self._at(source, attack, target)
        found: Shares | None = self.remember(("right", at), lambda: _share(self._labels(at, target), self.y))
        return found

    def labels(self, source: str, attack: str, target: str) -> np.ndarray | None:
        """(n, draws) labels that the target gives; None where the cell was not run or holds a -1."""
        found = self._labels(self._at(source, attack, target), target)
        return None if (found < 0).any() else found

    def clean(self, target: str) -> Shares:
        """(n,) share of draws with the true label on the clean images."""
        return np.asarray((self._clean_labels(target) == self.y[:, None]).mean(1))

    def rejected(self, source: str, attack: str, target: str) -> Shares | None:
        """(n,) share of draws with the answer after the last class: none of them. None as for `right`."""
        labels = self._labels(self._at(source, attack, target), target)
        return _share(labels, np.full(len(self.y), len(self.meta["classes"])))

    def clean_rejected(self, target: str) -> Shares:
        """(n,) the same on the clean images."""
        return np.asarray((self._clean_labels(target) == len(self.meta["classes"])).mean(1))

    def noise(self, target: str) -> list[Shares]:
        """For each draw of random sign noise that was answered in full, (n,) 1 where the label is the true one."""
        t = self._index("target", target)
        return [(labels == self.y).astype(float) for labels in self._values("noise")[:, t] if (labels >= 0).all()]

    def home(self, source: str, attack: str, target: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(right on x, fooled on x_adv) of the source itself, both (n,) bool; None where that is unknown."""
        s, _, t = self._at(source, attack, target)
        after = self.home_labels(source, attack, target)
        clean = (
            self._values("own_clean")[self._relative[source], t] if source in self._relative else self._values("source_clean")[s]
        )
        if after is None or (clean < 0).any():
            return None
        return clean == self.y, after != self.y

    def home_labels(self, source: str, attack: str, target: str) -> np.ndarray | None:
        """(n,) labels that the source itself gives to x_adv; None where that is unknown."""
        s, a, t = self._at(source, attack, target)
        own = source in self._relative
        found = self._values("own_home")[self._relative[source], a, t] if own else self._values("home")[s, a]
        return None if (found < 0).any() else np.asarray(found)

    def source_clean(self, source: str) -> np.ndarray | None:
        """(n,) true where the source is right on the clean image; None for rows that have no one source."""
        if source in self.meta["relative"]:
            return None
        return np.asarray(self._values("source_clean")[self._index("source", source)] == self.y)

    def is_random(self, target: str) -> bool:
        """Whether the target draws at each query."""
        return target in self._random

    def reason(self, source: str, attack: str, target: str) -> str:
        """Why a cell was not run."""
        reasons = self.meta["reasons"]
        for key in (f"{source}|{attack}|{target}", f"{source}|{attack}|*", f"{source}|*|{target}", f"*|*|{target}"):
            if key in reasons:
                return str(reasons[key])
        return "not part of the study"

    def remember(self, key: object, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for this matrix."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def write(self, file: Path) -> None:
        """Write netCDF 3; the same matrix gives the same bytes.

        Rows of `example` (or of draws) that hold -1 alone are left out, after the CF conventions 1.11, section 8.2, "compression by
        gathering": a cell that was not run takes no room.
        """
        import xarray as xr

        from firedoor.files import write_atomically

        data = self.data.copy()
        data.attrs["sha256"] = _digest(data)
        data.attrs["firedoor"] = json.dumps(self.meta, sort_keys=True, ensure_ascii=True, allow_nan=False)
        stored = _gather(data)
        stored = xr.Dataset({name: stored[name].variable for name in sorted(map(str, stored.variables))}, attrs=data.attrs)
        buffer = io.BytesIO(stored.to_netcdf(engine="scipy", format="NETCDF3_64BIT"))
        write_atomically(file, buffer.getvalue())

    def _labels(self, at: tuple[int, int, int], target: str) -> np.ndarray:
        """(n, draws) of one cell."""
        if self.is_random(target):
            return np.asarray(self._values("draws")[at[0], at[1], self._random[target]])
        return np.asarray(self._values("predicted")[at][:, None])

    def _clean_labels(self, target: str) -> np.ndarray:
        """(n, draws) on the clean images."""
        t = self._index("target", target)
        if self.is_random(target):
            return np.asarray(self._values("clean_draws")[self._random[target]])
        return np.asarray(self._values("clean")[t][:, None])

    @cached_property
    def _random(self) -> dict[str, int]:
        return {str(t): i for i, t in enumerate(self.data["random_target"].values)} if "random_target" in self.data.coords else {}

    @cached_property
    def _relative(self) -> dict[str, int]:
        return {str(s): i for i, s in enumerate(self.data["relative_source"].values)}

    @cached_property
    def _memory(self) -> dict[Any, Any]:
        return {}

    @cached_property
    def _positions(self) -> dict[str, dict[str, int]]:
        return {axis: {n: i for i, n in enumerate(names)} for axis, names in self._axes.items()}

    @property
    def _axes(self) -> dict[str, list[str]]:
        return {"source": self.sources, "attack": self.attacks, "target": self.targets}

    def _index(self, axis: str, name: str) -> int:
        from firedoor.catalogue import nearest

        if name not in self._positions[axis]:
            names = self._axes[axis]
            raise SpecError(f"the matrix has no {axis} {name!r}.{nearest(name, names)} It has: {', '.join(names)}.")
        return self._positions[axis][name]

    def _at(self, source: str, attack: str, target: str) -> tuple[int, int, int]:
        return self._index("source", source), self._index("attack", attack), self._index("target", target)

    def _values(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = self.data[name].values
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {}


def open_matrix(file: Path) -> Matrix:
    """Read a matrix back. Errors: StoreError if the file is missing or is no matrix."""
    import xarray as xr

    try:
        data = xr.load_dataset(file, engine="scipy")
        meta = json.loads(data.attrs.pop("firedoor"))
        data = _scatter(data)
        if data.attrs.pop("sha256") != _digest(data):
            raise ValueError("checksum")
    except FileNotFoundError:
        raise StoreError(f"{file} is missing. Make it with `firedoor run STUDY.toml --out {file.parent}`.") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{file} is no matrix of firedoor ({type(error).__name__}). Run the study again, or give another folder."
        ) from None
    return Matrix(data, meta)


def _gather(data: xr.Dataset) -> xr.Dataset:
    """`data` with only those cells of a variable that hold anything but -1, and each one's place, counted along its named axes."""
    for name, variable in sorted((str(n), v) for n, v in data.data_vars.items()):
        leading = [str(d) for d in variable.dims if d not in ("example", "draw")]
        if not leading or variable.dtype != np.int8 or not all(d in data.coords for d in leading):  # without names its size is lost
            continue
        rows = variable.values.reshape(math.prod(variable.sizes[d] for d in leading), -1)
        (filled,) = np.nonzero((rows != -1).any(1))
        filled = filled if len(filled) else np.zeros(1, int)  # netCDF 3 has no axis of length 0
        if len(filled) == len(rows) or len(filled) * SPARSEST < len(rows):  # nothing to gain, or more than a reader would unpack
            continue
        trailing = variable.dims[len(leading) :]
        kept = rows[filled].reshape(len(filled), *variable.shape[len(leading) :])
        attributes = {"compress": " ".join(leading)}
        data = data.drop_vars(name)
        data[name] = ((f"{name}_cell", *trailing), kept)
        data[f"{name}_cell"] = ((f"{name}_cell",), filled.astype(np.int32), attributes)
    return data


def _scatter(data: xr.Dataset) -> xr.Dataset:
    """The inverse of `_gather`. Errors: ValueError if a place lies outside the axes."""
    for place in [str(v) for v in data.coords if "compress" in data[v].attrs]:
        name, leading = place.removesuffix("_cell"), str(data[place].attrs["compress"]).split()
        gathered = data[name]
        shape = [data.sizes[d] for d in leading]
        at = data[place].values
        if not (math.prod(shape) <= at.size * SPARSEST and at.min() >= 0 and at.max() < math.prod(shape)):
            raise ValueError("cells outside the axes, or axes far larger than the cells")
        rows = np.full((math.prod(shape), *gathered.shape[1:]), -1, gathered.dtype)
        rows[at] = gathered.values
        dims = (*leading, *gathered.dims[1:])
        data = data.drop_vars([name, place])
        data[name] = (dims, rows.reshape(*shape, *gathered.shape[1:]))
    return data


def _digest(data: xr.Dataset) -> str:
    """sha256 over the names, shapes and values of all variables."""
    total = hashlib.sha256()
    for name in sorted(str(v) for v in data.variables):
        values = np.ascontiguousarray(data[name].values)
        texts = values.dtype.kind in "UO"
        total.update(f"{name} {values.shape} ".encode())
        total.update(
            "\n".join(map(str, values.ravel())).encode() if texts else values.astype(values.dtype.newbyteorder("<")).tobytes()
        )
    return total.hexdigest()


def _share(labels: np.ndarray, y: np.ndarray) -> Shares | None:
    """labels (n, draws) to (n,) shares; None if any label is missing."""
    if (labels < 0).any():
        return None
    return np.asarray((labels == y[:, None]).mean(1))
