"""The tables of docs/attacks.md, from the catalogue and the tiers: python examples/attacks_table.py [PAGE, to renew it in place]."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pages import run, text_of

from firedoor import catalogue, tiers
from firedoor.data import Digits
from firedoor.protocols import Attack
from firedoor.threat import L2, Linf

BLOCK = re.compile(r"(<!-- begin: (\w+)[^>]* -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown, with None as an empty cell."""
    lines = [list(head), ["---"] * len(list(head)), *([_cell(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def attacks() -> str:
    """Every attack and source recipe of the catalogue."""
    head = ("attack", "family", "year", "G", "tier", "what it is", "reference")
    found = catalogue.entries("attacks")
    return table(head, ((e.name, e.family, e.year, e.G, e.tier, e.summary, e.reference) for e in found))


def parts() -> str:
    """What the loop takes in `parts`, `objective` and `estimator`."""
    kinds = {"parts": "part", "objectives": "objective", "estimators": "estimator"}
    rows = [(e.name, kinds[kind], e.family, e.year, e.summary, e.reference) for kind in kinds for e in catalogue.entries(kind)]
    return table(("name", "kind", "family", "year", "what it is", "reference"), rows)


def suites() -> str:
    """What each tier adds to the one below, and what all of it costs for one image."""
    head = (
        "tier",
        "adds, on every source",
        "attacks",
        "gradients",
        "adds, on the target itself",
        "attacks",
        "gradients",
        "queries",
    )
    rows = []
    for tier in tiers.TIERS:
        transfer, own = tiers.attacks_of(tier, Linf(8 / 255), Digits())
        names = [", ".join(_named(n, f) for n, f in part[tier].items()) for part in (tiers.TRANSFER, tiers.OWN)]
        first, second = _cost(transfer), _cost(own)
        rows.append((tier, names[0], *first[:2], names[1], *second))
    own = tiers.attacks_of(tiers.TIERS[-1], L2(0.5), Digits())[1]
    left_out = [n for t in tiers.TIERS for n in tiers.OWN[t] if n not in tiers.attacks_of(t, Linf(8 / 255), Digits())[1]]
    count, gradients, queries = _cost(own)
    note = (
        f"Numbers are for Linf, where {' and '.join(left_out)} cannot run. With an L2 threat {tiers.TIERS[-1]} runs {count} attacks on "
        f"the target: {gradients:,} gradients and {queries:,} queries.\n"
    )
    return table(head, rows) + "\n" + note


BLOCKS = {"attacks": attacks, "parts": parts, "tiers": suites}


def renewed(page: str) -> str:
    """The page with every table between `<!-- begin: NAME ... -->` and `<!-- end: NAME -->` made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{BLOCKS[m[2]]()}\n{m[4]}", page)


def _cost(found: Mapping[str, Attack]) -> tuple[int, int, int]:
    return len(found), sum(a.gradients for a in found.values()), sum(a.queries for a in found.values())


def _named(name: str, fields: Mapping[str, Any]) -> str:
    said = [f"{k} = {v['type'] if isinstance(v, Mapping) else v}" for k, v in fields.items() if k != "type"]
    kind = [fields["type"]] if "type" in fields else []
    return name + (f" ({', '.join(kind + said)})" if kind or said else "")


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, help="page whose blocks to renew")
    page = parser.parse_args().page
    if page:
        page.write_text(renewed(text_of(page)), encoding="utf-8")
    else:
        print("\n".join(f"{name}\n\n{make()}" for name, make in BLOCKS.items()))


if __name__ == "__main__":
    run(main)
