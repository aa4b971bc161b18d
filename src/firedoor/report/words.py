"""Numbers and names as text: the only place where a report rounds a figure or shows a string that somebody else wrote.

A rate is never text without its interval and n; what was not measured says so.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOT_MEASURED", "Figure", "megabytes", "multiple", "number", "percent", "points", "visible"]

NOT_MEASURED = "not measured"
MINUS = "\u2212"


@dataclass(frozen=True)
class Figure:
    """A number as shown: `text`, its `interval` (may be empty) and the plain `value` it is sorted and drawn by."""

    text: str
    interval: str
    value: float | None

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".rstrip()


def percent(rate: Mapping[str, Any] | None) -> Figure:
    """`{"value": .412, "low": .382, "high": .443, "n": 1000}` as "41.2 % (38.2 to 44.3, n = 1000)"; whole percent below n = 100."""
    return _figure(rate, " %")


def points(difference: Mapping[str, Any] | None) -> Figure:
    """A difference of two rates, in percentage points."""
    return _figure(difference, " pt")


def multiple(value: float | None) -> Figure:
    """How many times the cost of the undefended recipe."""
    if value is None:
        return Figure(NOT_MEASURED, "", None)
    return Figure(f"{value:.1f}\u00d7" if value < 99.95 else f"{value:.0f}\u00d7", "", value)


def megabytes(value: float | None) -> Figure:
    """A count of bytes, in millions."""
    if value is None:
        return Figure(NOT_MEASURED, "", None)
    return Figure(f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e6:,.0f} MB", "", value)


def number(value: Any) -> str:
    """Any scalar in at most four significant digits; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS, 1) if value < 0 else f"{value:.4g}"
    return visible(value)


def visible(text: Any) -> str:
    """Text with nothing hidden in it: control, direction-changing and unpaired surrogate characters become "\\uXXXX" in plain letters."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else f"\\u{ord(c):04x}" for c in shown)


_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _figure(rate: Mapping[str, Any] | None, unit: str) -> Figure:
    if rate is None or rate.get("value") is None:
        return Figure(NOT_MEASURED, "", None)
    n = rate.get("n")
    digits = 0 if isinstance(n, int) and n < 100 else 1
    parts = []
    if rate.get("low") is not None and rate.get("high") is not None:
        parts.append(f"{_hundred(rate['low'], digits)} to {_hundred(rate['high'], digits)}")
    if n is not None:
        parts.append(f"n = {n}")
    return Figure(f"{_hundred(rate['value'], digits)}{unit}", f"({', '.join(parts)})" if parts else "", float(rate["value"]))


def _hundred(value: float, digits: int) -> str:
    text = f"{100 * value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)
