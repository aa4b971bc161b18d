"""A recipe is a frozen dataclass; here it becomes a dict, a TOML table, a fingerprint, and back.

The dict holds every field with its default resolved, so the fingerprint names exactly what will be computed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from fractions import Fraction
from typing import Any, Protocol, Union, runtime_checkable

from firedoor import catalogue
from firedoor.errors import SpecError

__all__ = ["build", "canonical", "fingerprint", "from_value", "recipes_in", "to_dict", "to_toml"]

KIND_OF = {  # protocol of a field -> folder its entries come from
    "Attack": "attacks",
    "GradientPart": "parts",
    "SourceObjective": "objectives",
    "Estimator": "estimators",
    "Model": "models",
    "Architecture": "architectures",
    "Dataset": "data",
    "BatchLoss": "losses",
    "Wrapper": "wrappers",
    "Specimen": "broken",
    "Threat": "threats",
    "Fit": "training",
    "Diagnostic": "diagnostics",
}
Context = Mapping[str, Any]  # field name -> value (or table) that a missing field takes


@runtime_checkable
class Digested(Protocol):
    """A recipe whose content lies outside it, such as a data set."""

    def digest(self) -> str: ...


def to_dict(value: Any, digests: bool = False) -> Any:
    """A recipe as plain JSON values, `type` first, all defaults in.

    `digests`: as a key wants it: data sets carry the digest of their content, and fields marked `metadata={"key": False}` are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {"type": type(value).__name__}
        version = getattr(type(value), "version", 1)
        if version != 1:
            out["version"] = version
        for f in dataclasses.fields(value):
            if f.metadata.get("key", True) or not digests:
                out[f.name] = to_dict(getattr(value, f.name), digests)
        if digests and isinstance(value, Digested):
            out["digest"] = value.digest()
        return out
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"a recipe must hold finite numbers, got {value}.")
        return int(value) if digests and value.is_integer() else value  # equal recipes have one key: 1.0 is 1
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): to_dict(v, digests) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v, digests) for v in value]
    raise SpecError(f"a recipe must be made of frozen dataclasses, numbers and texts, got a live {type(value).__name__}.")


def canonical(value: Any) -> str:
    """One text per value: sorted keys, shortest floats, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical dict of a recipe, which must be hashable."""
    return _fingerprint(value, tuple(r.digest() for r in recipes_in(value) if isinstance(r, Digested)))


@functools.lru_cache(maxsize=10_000)
def _fingerprint(value: Any, contents: tuple[str, ...]) -> str:
    return hashlib.sha256(canonical(to_dict(value, digests=True)).encode()).hexdigest()


def recipes_in(value: Any) -> Iterator[Any]:
    """The recipe and every recipe inside it, outermost first."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for f in dataclasses.fields(value):
            yield from recipes_in(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from recipes_in(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from recipes_in(v)


# ---------------------------------------------------------------- reading


def from_value(annotation: Any, value: Any, where: str, context: Context, names: Mapping[str, Any]) -> Any:
    """`value`, as a TOML file gives it, as an instance of `annotation`.

    `names`: recipes that a text may refer to. Errors: SpecError naming the place `where`, what was needed and what was got.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _from_union(arguments, value, where, context, names)
    kind = KIND_OF.get(getattr(annotation, "__name__", ""))
    if kind:
        return _from_kind(kind, annotation, value, where, context, names)
    if origin is typing.Literal:
        if value not in arguments:
            raise SpecError(
                f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}.{catalogue.nearest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{where} must be a list, got {_show(value)}.")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_value(arguments[0], v, f"{where}[{i}]", context, names) for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise SpecError(f"{where} must have {len(arguments)} items, got {len(value)}.")
        return tuple(
            from_value(a, v, f"{where}[{i}]", context, names) for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{where} must be a table, got {_show(value)}.")
        return {k: from_value(arguments[1], v, f"{where}.{k}", context, names) for k, v in value.items()}
    if dataclasses.is_dataclass(annotation):
        return build(annotation, value, where, context, names)
    return _from_plain(annotation, value, where)


def build(cls: Any, table: Any, where: str, context: Context, names: Mapping[str, Any]) -> Any:
    """Call `cls` (a dataclass or an alias) with the fields of a table; missing fields come from `context`, then from defaults."""
    if not isinstance(table, Mapping):
        raise SpecError(f"{where} must be a table, got {_show(table)}.")
    hints = typing.get_type_hints(cls if inspect.isfunction(cls) else cls.__init__)
    parameters = dict(inspect.signature(cls).parameters)
    arguments: dict[str, Any] = {}
    for key, value in table.items():
        if key == "type":
            continue
        if key == "version":  # to_dict writes it
            if value != getattr(cls, "version", 1):
                known = f"version {getattr(cls, 'version', 1)} of {getattr(cls, '__name__', cls)}"
                raise SpecError(f"{where} must be {known}, got version {_show(value)}. Use the release that wrote it.")
            continue
        if key not in parameters:
            raise SpecError(
                f"{where}: {getattr(cls, '__name__', cls)} has no field {key!r}.{catalogue.nearest(key, parameters)} Fields: {', '.join(parameters)}."
            )
        given = context.get(key)
        if isinstance(given, Mapping) and isinstance(value, Mapping) and "type" not in value:
            value = {**given, **value}  # laid over the study's own table
        arguments[key] = from_value(hints[key], value, f"{where}.{key}", context, names)
    for key, parameter in parameters.items():
        if key in arguments:
            continue
        if key in context:
            given = context[key]
            others = {k: v for k, v in context.items() if k != key}  # what is built here must not stand for a part of itself
            arguments[key] = (
                from_value(hints[key], given, f"{where}.{key}", others, names) if not dataclasses.is_dataclass(given) else given
            )
        elif parameter.default is inspect.Parameter.empty:
            raise SpecError(f"{where}: {getattr(cls, '__name__', cls)} needs the field {key!r}. Add it.")
    try:
        return cls(**arguments)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _from_kind(kind: str, annotation: Any, value: Any, where: str, context: Context, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        if kind == "models":
            if value not in names:
                raise SpecError(
                    f"{where}: no model is called {value!r}.{catalogue.nearest(value, names)} Define it under [models]."
                )
            known = names[value]
            return known() if callable(known) and not dataclasses.is_dataclass(known) else known
        value = {"type": value}
    if not isinstance(value, Mapping):
        raise SpecError(f"{where} must be a name or a table with a `type`, got {_show(value)}.")
    name = value.get("type", "Fit" if kind == "training" else None)
    if not isinstance(name, str):
        raise SpecError(f"{where} needs a `type`: one of {', '.join(e.name for e in catalogue.entries(kind))}.")
    try:
        cls = catalogue.find(kind, name)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    return build(cls, value, where, context, names)


def _from_union(arguments: tuple[Any, ...], value: Any, where: str, context: Context, names: Mapping[str, Any]) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [a for a in arguments if a is not type(None)]
    problem: SpecError | None = None
    for option in options:
        try:
            return from_value(option, value, where, context, names)
        except SpecError as error:
            problem = problem or error
    raise problem or SpecError(f"{where}: got {_show(value)}.")


def _from_plain(annotation: Any, value: Any, where: str) -> Any:
    if annotation is float:
        return _number(value, where)
    if annotation is int:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**53:
            raise SpecError(f"{where} must be a whole number, got {_show(value)}.")
        return value
    if annotation is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where} must be true or false, got {_show(value)}.")
        return value
    if annotation is str:
        if not isinstance(value, str):
            raise SpecError(f"{where} must be a text, got {_show(value)}.")
        return value
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        if not isinstance(value, str) or value not in annotation.__members__:
            raise SpecError(f"{where} must be one of {', '.join(annotation.__members__)}, got {_show(value)}.")
        return annotation[value]
    raise SpecError(f"{where} cannot be given in a study file ({getattr(annotation, '__name__', annotation)}).")


def _number(value: Any, where: str) -> float:
    """A finite number, or a fraction such as "8/255"."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?/\d{1,9}", value.strip(), re.ASCII):
        top, bottom = value.strip().split("/")
        if int(bottom):
            return float(Fraction(top) / int(bottom))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise SpecError(f'{where} must be a finite number or a fraction such as "8/255", got {_show(value)}.')
    return float(value)


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        text = "a number too long to show"
    return text if len(text) <= 80 else text[:77] + "..."


# ---------------------------------------------------------------- writing


def to_toml(value: Mapping[str, Any]) -> str:
    """A TOML text of nested dicts, lists, numbers, texts and truth values; None is left out."""
    lines: list[str] = []

    def table(path: tuple[str, ...], content: Mapping[str, Any]) -> None:
        plain = {k: v for k, v in content.items() if not isinstance(v, Mapping) or len(path) >= 2}
        if path and (plain or not content):
            lines.append("\n[" + ".".join(map(_key, path)) + "]")
        lines.extend(f"{_key(k)} = {_inline(v)}" for k, v in plain.items() if v is not None)
        for k, v in content.items():
            if k not in plain:
                table((*path, k), v)

    table((), value)
    return "\n".join(lines).lstrip("\n") + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items() if v is not None) + "}"
    return "[" + ", ".join(_inline(v) for v in value) + "]"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
