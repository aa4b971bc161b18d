"""A run's defences in one table of Markdown: what each loses to which attacker, and what it costs.

Usage: python examples/defences_table.py OUT [PAGE NAME, to renew the block of that name in a page]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("defence", "clean", "clean drop", "naive", "relaxed", "transferred", "in 1, 5, 20 tries", "ms per image", "verdict")


def table(report: dict[str, Any]) -> str:
    """One row per target: right answers in percent with 95 % intervals."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for t in report["targets"]:
        tries = t["worst_of_k"]
        row = (
            t["name"],
            rate(t["clean_accuracy"]),
            "control" if t["control"] else rate(t["clean_drop"]),
            rate(t["naive_white_box_accuracy"]),
            rate(t["white_box_accuracy"]),
            rate(t["worst_pair"]),
            " / ".join(f"{100 * tries[k]['value']:.0f}" if tries[k] else "?" for k in ("1", "5", "20")) if tries else "the same",
            f"{1000 * t['inference_seconds_per_image']:.2g}",
            t["verdict"],
        )
        lines.append("| " + " | ".join(row) + " |")
    said = f"{report['threat']['text']}, {report['n_evaluation']} images. Right answers in %, with 95 % intervals."
    return "\n".join([*lines, "", said]) + "\n"


def rate(estimate: dict[str, float] | None) -> str:
    """Percent with its interval."""
    if estimate is None:
        return "not measured"
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:.1f} ({low:.0f} to {high:.0f})"


def main() -> None:
    report = json.loads((Path(sys.argv[1]) / "report.json").read_text(encoding="utf-8"))
    if len(sys.argv) < 4:
        print(table(report), end="")
        return
    page, name = Path(sys.argv[2]), re.escape(sys.argv[3])
    block = re.compile(rf"(<!-- begin: {name}[^>]* -->\n)(.*?)(<!-- end: {name} -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    if not block.search(text):
        sys.exit(f"{page} has no block {sys.argv[3]!r}: put <!-- begin: {sys.argv[3]} --> and <!-- end: {sys.argv[3]} --> into it.")
    page.write_text(block.sub(lambda m: f"{m[1]}\n{table(report)}\n{m[3]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
