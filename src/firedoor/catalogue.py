"""What there is, by name: the folder is the registry.

An entry is a public class or function whose docstring has a `Reference:`. Listing reads source text only, so it needs no torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from firedoor.errors import SpecError

__all__ = ["KINDS", "Entry", "entries", "find", "nearest"]

FOLDERS = {
    "attacks": ("attacks", "attacks/named"),
    "plugins": ("attacks/plugins",),
    "parts": ("attacks/parts",),
    "objectives": ("attacks/objectives",),
    "estimators": ("attacks/estimators",),
    "models": ("models",),
    "architectures": ("architectures",),
    "data": ("data",),
    "losses": ("defences/losses",),
    "wrappers": ("defences/wrappers",),
    "broken": ("defences/broken",),
    "training": ("defences",),
    "diagnostics": ("diagnostics",),
    "threats": ("threat.py",),
    "defences": ("defences/losses", "defences/wrappers", "defences/broken", "defences", "models", "architectures"),
}
KINDS = tuple(FOLDERS)
DEFENCE_FAMILIES = {
    "adversarial training",
    "ensemble",
    "distillation",
    "input transformation",
    "randomisation",
    "regularisation",
    "gradient masking",
}
ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One published name. `G`: gradients per example at the default fields; None where that has no meaning. `queries` beside them."""

    name: str
    kind: str
    family: str
    reference: str
    year: int | None
    G: int | None
    tier: str | None
    summary: str
    module: str
    queries: int = 0


@cache
def entries(kind: str) -> tuple[Entry, ...]:
    """Every entry of a kind, by name. Errors: SpecError for an unknown kind."""
    if kind not in FOLDERS:
        raise SpecError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.{nearest(kind, KINDS)}")
    found = [entry for place in FOLDERS[kind] for entry in _read(ROOT / place, kind)]
    if kind == "defences":
        found = [replace(e, family=f) for e in found for f in e.family.split("; ") if f in DEFENCE_FAMILIES]
    if kind == "attacks":
        found += [
            replace(e, family="source recipe") for e in _read(ROOT / "models", kind) if "source recipe" in e.family.split("; ")
        ]
    return tuple(sorted(found, key=lambda e: e.name.lower()))


def find(kind: str, name: str) -> Any:
    """The class or function of that name; among attacks also the adapters of other libraries. Errors: SpecError with the nearest name."""
    known = (*entries(kind), *(entries("plugins") if kind == "attacks" else ()))
    for entry in known:
        if entry.name == name:
            return getattr(importlib.import_module(entry.module), name)
    names = [e.name for e in known]
    raise SpecError(f"no {kind} entry is called {name!r}.{nearest(name, names)} `firedoor list {kind}` shows all.")


def nearest(name: str, names: Any) -> str:
    """' Did you mean ...?' or nothing."""
    lower = {str(n).lower(): str(n) for n in names}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def _read(place: Path, kind: str) -> list[Entry]:
    files = [place] if place.suffix else sorted(p for p in place.glob("*.py") if p.name != "__init__.py")
    found = []
    for file in files:
        module = ".".join(("firedoor", *file.relative_to(ROOT).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node) or ""
                if "Reference:" in text:
                    found.append(_entry(node.name, kind, module, text))
    return found


def _entry(name: str, kind: str, module: str, text: str) -> Entry:
    def field(pattern: str) -> str | None:
        match = re.search(pattern, text)
        return " ".join(match.group(1).split()) if match else None

    year, gradients = field(r"Year: (\d{4})"), field(r"\bG: (\d+)")
    return Entry(
        name=name,
        kind=kind,
        family=field(r"Family: ([^.]+)\.") or "",
        reference=field(r"Reference: ((?:.|\n)+)") or "",
        year=int(year) if year else None,
        G=int(gradients) if gradients else None,
        queries=int(field(r"Queries: (\d+)") or 0),
        tier=field(r"Tier: (T\d)"),
        summary=" ".join(re.split(r"\.(?:\s|$)|\n\n", text, maxsplit=1)[0].split()) + ".",
        module=module,
    )
