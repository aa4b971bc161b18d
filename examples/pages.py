"""What the tables share: reading a run's report, a rate as it is printed, the block of a page, and one message for what goes wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firedoor.errors import DataError, FiredoorError, StoreError, UsageError


def run(main: Callable[[], int | None]) -> None:
    """Call it; a foreseen problem is one message and the exit code of the command line's own."""
    try:
        code = main()
    except FiredoorError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code or 0)


def report_of(folder: Path) -> dict[str, Any]:
    """The report of a run's folder. Errors: StoreError without one, DataError for something else of that name."""
    file = folder / "report.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(
            f"the report {file} is needed, got {type(error).__name__}. Make it with `firedoor run STUDY.toml --out {folder}`."
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"targets", "threat", "n_evaluation"} <= set(found):
        raise DataError(f"{file} must be a report of a run, got something else. Make it again with `firedoor report {folder}`.")
    return found


def rate(estimate: dict[str, float] | None) -> str:
    """Percent with its interval."""
    if estimate is None:
        return "not measured"
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:.1f} ({low:.0f} to {high:.0f})"


def text_of(page: Path) -> str:
    """What stands on it."""
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"a page of text is needed, got {page} ({type(error).__name__}). Name one that exists.") from None


def renew(page: Path, name: str, text: str) -> None:
    """Put the text into the block of that name, between two comments of the page."""
    block = re.compile(rf"(<!-- begin: {re.escape(name)}[^>]* -->\n)(.*?)(<!-- end: {re.escape(name)} -->)", re.DOTALL)
    old = text_of(page)
    if not block.search(old):
        raise UsageError(f"{page} has no block {name!r}. Put <!-- begin: {name} --> and <!-- end: {name} --> into it.")
    page.write_text(block.sub(lambda m: f"{m[1]}\n{text}\n{m[3]}", old), encoding="utf-8")
