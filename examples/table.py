"""A short Markdown table of a run, for a README: python examples/table.py FOLDER_OF_A_RUN."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pages import report_of, run

COLUMNS = ("target", "family", "verdict", "clean", "clean drop", "worst pair", "held-out worst pair", "white box", "training")


def percent(rate: dict[str, float] | None) -> str:
    """A rate as percent with its 95 % interval."""
    if rate is None:
        return "not measured"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"


def row(target: dict[str, Any]) -> list[str]:
    multiple = target["train_multiple"]
    drop = target["clean_drop"]
    return [
        target["name"].replace("|", "\\|").replace("_", " "),
        target["family"] + (", specimen" if target["exhibit"] else ""),
        target["verdict"],
        percent(target["clean_accuracy"]),
        "control" if target["control"] else f"{100 * drop['value']:.1f}" if drop else "not measured",
        percent(target["worst_pair"]),
        percent(target["worst_pair_held_out"]),
        percent(target["white_box_accuracy"]),
        "not measured" if multiple is None else f"{multiple:.1f} x",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of a run")
    report = report_of(parser.parse_args().out)
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *(row(t) for t in report["targets"])]
    print("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    print(f"\n{report['threat']['text']}, {report['n_evaluation']} images; accuracy in percent with its 95 % interval.")


if __name__ == "__main__":
    run(main)
