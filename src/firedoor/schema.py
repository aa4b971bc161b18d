"""The JSON Schema of a study file, made from the same annotations that read it."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from enum import Enum
from typing import Any, Union

from firedoor import catalogue
from firedoor.spec import KIND_OF
from firedoor.study import Study

__all__ = ["study_schema"]

FRACTION = {"type": "string", "pattern": r"^-?\d{1,9}(\.\d{1,9})?/\d{1,9}$"}
EXTRA = {"threat": "threats", "architecture": "architectures", "fit": "training"}


def study_schema() -> dict[str, Any]:
    """A schema (2020-12) that editors can complete study files with. Fields that the study fills in are optional in entries."""
    definitions: dict[str, Any] = {}
    for kind in sorted(set(KIND_OF.values())):
        entries = (*catalogue.entries(kind), *(catalogue.entries("plugins") if kind == "attacks" else ()))
        definitions[kind] = {"anyOf": [{"type": "string"}, *({"$ref": f"#/$defs/{kind}.{e.name}"} for e in entries)]}
        for entry in entries:
            definitions[f"{kind}.{entry.name}"] = _entry(kind, entry)
    hints = typing.get_type_hints(Study)
    properties = {f.name: _of(hints[f.name]) for f in dataclasses.fields(Study)}
    properties |= {name: {"$ref": f"#/$defs/{kind}"} for name, kind in EXTRA.items()}
    properties["tier"] = {"enum": ["T0", "T1", "T2"]}
    properties["scale"] = {"type": "string"}
    properties["scales"] = {"type": "object", "additionalProperties": {"type": "object"}}  # dotted paths and their values
    properties["models"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/models"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "firedoor study",
        "type": "object",
        "properties": properties,
        "required": ["data", "threat", "sources", "attacks", "targets"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _entry(kind: str, entry: catalogue.Entry) -> dict[str, Any]:
    cls = catalogue.find(kind, entry.name)
    hints = typing.get_type_hints(cls if inspect.isfunction(cls) else cls.__init__)
    fields = {name: _of(hints[name]) for name in inspect.signature(cls).parameters}
    return {
        "type": "object",
        "description": entry.summary,
        "properties": {"type": {"const": entry.name}, **fields},
        "additionalProperties": False,
    }


def _of(annotation: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(a) for a in arguments if a is not type(None)]}
    kind = KIND_OF.get(getattr(annotation, "__name__", ""))
    if kind:
        return {"$ref": f"#/$defs/{kind}"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": list(annotation.__members__)}
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        properties = {f.name: _of(hints[f.name]) for f in dataclasses.fields(annotation)}
        return {"type": "object", "properties": properties, "additionalProperties": False}
    if len(arguments) == 2:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    plain = {int: {"type": "integer"}, bool: {"type": "boolean"}, str: {"type": "string"}}
    return plain.get(annotation, {"anyOf": [{"type": "number"}, FRACTION]})
