"""A run's defences in one table of Markdown: what each loses to which attacker, and what it costs.

Usage: python examples/defences_table.py OUT [PAGE NAME, to renew the block of that name in a page]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pages import rate, renew, report_of, run

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a run")
    parser.add_argument("page", nargs="*", help="page and block to renew")
    asked = parser.parse_args()
    if len(asked.page) not in (0, 2):
        parser.error(f"a page needs the name of its block, and nothing more, got {' '.join(asked.page)}")
    text = table(report_of(asked.out))
    if asked.page:
        renew(Path(asked.page[0]), asked.page[1], text)
    else:
        print(text, end="")


if __name__ == "__main__":
    run(main)
