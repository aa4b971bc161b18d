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
            "not measured" if t["inference_seconds_per_image"] is None else f"{1000 * t['inference_seconds_per_image']:.2g}",
            t["verdict"],
        )
        lines.append("| " + " | ".join(row) + " |")
    rejecting = [t for t in report["targets"] if t.get("detector")]
    aside = [
        f"{t['name']} rejects {rate(t['detector']['false_positives'])} of clean images; if rejecting an adversarial example counts as "
        f"right, {rate(t['detector']['lenient_worst_pair'])} stand the worst pair and "
        f"{rate(t['detector']['lenient_white_box_accuracy'])} the white box."
        for t in rejecting
    ]
    ways = [
        f"{t['name']}: {rate(own)} by its differentiable form, {rate(straight)} straight through"
        for t in report["targets"]
        if (straight := best(report, t["name"], "itself, identity")) and (own := best(report, t["name"], "itself"))
    ]
    if ways:
        aside.append(f"Where *relaxed* has two ways, it is what stands both: {'; '.join(ways)}.")
    said = (
        f"{report['threat']['text']}, {report['n_evaluation']} images. Right answers in %, with 95 % intervals. {' '.join(aside)}"
    )
    return "\n".join([*lines, "", said]) + "\n"


def best(report: dict[str, Any], target: str, row: str) -> dict[str, float] | None:
    """The rate of the strongest white-box attack of that row."""
    found = [c["robust_accuracy"] for c in report["cells"] if (c["target"], c["source"]) == (target, row) and c["robust_accuracy"]]
    return min(found, key=lambda e: float(e["value"])) if found else None


def rate(estimate: dict[str, float] | None) -> str:
    """Percent with its interval."""
    if estimate is None:
        return "not measured"
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:.1f} ({low:.0f} to {high:.0f})"


def renew(page: Path, name: str, text: str) -> None:
    """Put the text into the block of that name, between two comments of the page."""
    block = re.compile(rf"(<!-- begin: {re.escape(name)}[^>]* -->\n)(.*?)(<!-- end: {re.escape(name)} -->)", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    if not block.search(old):
        sys.exit(f"{page} has no block {name!r}: put <!-- begin: {name} --> and <!-- end: {name} --> into it.")
    page.write_text(block.sub(lambda m: f"{m[1]}\n{text}\n{m[3]}", old), encoding="utf-8")


def main() -> None:
    report = json.loads((Path(sys.argv[1]) / "report.json").read_text(encoding="utf-8"))
    if len(sys.argv) < 4:
        print(table(report), end="")
    else:
        renew(Path(sys.argv[2]), sys.argv[3], table(report))


if __name__ == "__main__":
    main()
