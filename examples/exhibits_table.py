"""What each specimen of false security was caught by: python examples/exhibits_table.py PAGE NAME OUT [OUT ...]

Renews the block NAME of a page from the folders of runs. Without a page: python examples/exhibits_table.py - - OUT.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pages import rate, renew, report_of, run

NAMED = {  # the signs of each, any of which must fire; the verdict that it must get
    "distilled": (("A7", "B7", "E3", "E4t"), "MASKED"),
    "temperature": (("A7", "B7"), "MASKED"),
    "kwta": (("A8", "B6", "E3", "E4t"), "MASKED"),
    "thermometer": (("A7", "A9", "E3", "E4t"), "MASKED"),
    "quantised_activation": (("A7", "A8", "E3", "E4t"), "MASKED"),
    "zero_gradient": (("A7", "B7", "B13"), "MASKED"),
    "random_pruning": (("A2", "R1", "E3", "E4t"), "MASKED"),
    "overfit_fast": (("B17",), "EXPOSED"),  # its own gradient tells the truth, so it is no mask
}
FIRED = ("fail", "suspect")
COLUMNS = ("specimen", "data", "signs that had to fire", "fired", "naive white box", "best attack of all", "verdict", "as expected")


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per specimen that the study has: right answers in percent, with 95 % intervals."""
    found = []
    for target in report["targets"]:
        if target["name"] not in NAMED:
            continue
        signs, verdict = NAMED[target["name"]]
        fired = sorted({s["id"] for s in target["symptoms"] if s["status"] in FIRED and s["id"] in signs})
        true = [r for r in (target["white_box_accuracy"], target["worst_case"], target["naive_white_box_accuracy"]) if r]
        naive = rate(target["naive_white_box_accuracy"])
        if (
            target["name"] == "overfit_fast"
        ):  # its gradient is honest: only the figure of one step, at the eps of its training, is false
            naive = next(s["text"].rpartition(": ")[2] for s in target["symptoms"] if s["id"] == "B17")
        held = bool(fired) and target["verdict"] == verdict
        found.append(
            (
                target["name"],
                report["name"].rpartition(" ")[2],
                " or ".join(signs),
                ", ".join(fired) or "none",
                naive,
                rate(min(true, key=lambda r: r["value"]) if true else None),
                target["verdict"],
                "yes" if held else f"no, {verdict} was",
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="page to renew, or - to print")
    parser.add_argument("name", help="its block, or -")
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT", help="folder of a run")
    asked = parser.parse_args()
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    said = []
    for folder in asked.folders:
        report = report_of(folder)
        lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
        said.append(f"{report['name']}: {report['threat']['text']}, {report['n_evaluation']} images")
    text = "\n".join([*lines, "", "Right answers in %, with 95 % intervals. " + "; ".join(said) + "."]) + "\n"
    if asked.page == "-":
        print(text, end="")
    else:
        renew(Path(asked.page), asked.name, text)


if __name__ == "__main__":
    run(main)
