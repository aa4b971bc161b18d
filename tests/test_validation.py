"""The table of planted failures and honest models: how rows are counted, and where the table goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firedoor.errors import SpecError
from firedoor.validation import everything
from firedoor.validation.planted import FAULTS


def row(seed: int, name: str, caught: bool, fired: list[str], verdict: str = "MASKED") -> dict[str, Any]:
    planted = name in FAULTS
    return {"seed": seed, "name": name, "planted": planted, "caught": caught, "fired": fired, "masks": [], "verdict": verdict}


def test_rows_are_counted_over_seeds_and_planted_ones_come_first() -> None:
    fault = next(iter(FAULTS))
    rows = [
        row(0, "cnn", False, [], "EXPOSED"),
        row(0, fault, True, ["A7", "B5"]),
        row(1, fault, False, ["B5"], "ROBUST"),
        row(1, "cnn", True, ["A8"]),
    ]
    lines = everything.table(rows).splitlines()
    assert lines[0] == "| model | planted | caught, of 2 | verdicts | tests that fired, of 2 |"
    assert lines[2] == f"| {fault} | must fire {' or '.join(FAULTS[fault].tests)} | 1 | MASKED 1, ROBUST 1 | A7 1, B5 2 |"
    assert lines[3] == "| cnn | honest | 1 | EXPOSED 1, MASKED 1 | A8 1 |"


def test_the_block_of_a_page_is_renewed_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: validation -->\nold\n<!-- end: validation -->\nafter\n", encoding="utf-8")
    everything.renew(page, "new\\1\n")
    assert page.read_text(encoding="utf-8") == "before\n<!-- begin: validation -->\n\nnew\\1\n\n<!-- end: validation -->\nafter\n"


def test_a_page_that_cannot_take_the_table_is_refused_before_anything_runs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no block here\n", encoding="utf-8")
    for path in (page, tmp_path / "none.md", tmp_path):
        with pytest.raises(SpecError, match="must be a file with <!-- begin: validation -->"):
            everything.validate(page=path)
    with pytest.raises(SpecError, match="data must be one of shapes, digits, got 'cars'"):
        everything.validate("cars")
