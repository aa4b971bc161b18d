"""Candidates on development images: python examples/development_table.py STUDY --store STORE [--only NAME,...] [--set A.B=VALUE] [--json FILE] [--page FILE NAME]

Trains the targets of a study, one after the other, and lets each answer what the study's sources and attacks make of the development
images. Evaluation images are never read, so that candidates may be chosen by this table. Sources that the study does not name in `seen`
stand in for those that a later study holds out: no candidate trains on them. The price is what a training took, of all networks of a
candidate but the sources: passes forward and backward per training image, and seconds; the crafts of the sources are made once, for all.
What candidates train on names its own threat in the study file, so --set 'threat.eps="4/255"' or --set threat.targeted=true changes what
they are asked, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from pages import renew, run

from firedoor import study as studies
from firedoor.costs import trainable
from firedoor.craft import Craft, predict
from firedoor.store import FileStore
from firedoor.study import Study


def accuracy(live: Any, x: torch.Tensor, ids: tuple[str, ...], y: torch.Tensor) -> float:
    return float((predict(live, x, ids, 0) == y).float().mean())


def candidate(study: Study, name: str, crafts: dict[str, torch.Tensor], store: FileStore) -> dict[str, Any]:
    split, model = study.data.split("development"), study.targets[name]
    live = store.live(model)
    each = {pair: accuracy(live, x, split.ids, split.y) for pair, x in crafts.items()}
    own = [r for r in trainable([model]) if r not in study.sources.values()]
    records = [store.get("model", r.inputs(), dict)[1] for r in own]  # type: ignore[arg-type]
    passes = sum(float(d["passes"]) * r.fit.epochs for d, r in zip(records, own, strict=True))
    seen = {pair: each[pair] for pair in each if pair.split(", ")[0] in study.seen}
    return {
        "name": name,
        "clean": accuracy(live, split.x, split.ids, split.y),
        "worst": worst(seen),
        "mean": sum(seen.values()) / len(seen),
        "unseen": worst({pair: each[pair] for pair in each if pair not in seen}),
        "passes": passes,
        "seconds": sum(float(r["seconds"]) for r in records),
        "pairs": each,
    }


def worst(pairs: dict[str, float]) -> tuple[float, str] | None:
    return min((right, pair) for pair, right in pairs.items()) if pairs else None


def cell(found: tuple[float, str] | None) -> str:
    return f"{100 * found[0]:.1f} ({found[1]})" if found else "none"


def shown(found: list[dict[str, Any]], n: int) -> str:
    head = "| candidate | clean | worst seen pair | mean of the seen pairs | worst pair of a stand-in | passes | seconds |\n"
    head += "| --- | --- | --- | --- | --- | --- | --- |\n"
    body = "".join(
        f"| {r['name']} | {100 * r['clean']:.1f} | {cell(r['worst'])} | {100 * r['mean']:.1f} | {cell(r['unseen'])} "
        f"| {r['passes']:.0f} | {r['seconds']:.0f} |\n"
        for r in found
    )
    return f"{head}{body}\nRight answers in %, {n} development images, {len(found)} candidates looked at.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--store", required=True)
    parser.add_argument("--only", default="", help="names of targets, with commas between them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change a field of the study, such as threat.eps"
    )
    parser.add_argument("--json", help="file to write, with every pair")
    parser.add_argument("--page", nargs=2, help="page and block to renew")
    asked = parser.parse_args()
    study, store = studies.load(asked.study, tuple(asked.set)), FileStore(asked.store)
    n = len(study.data.split("development"))
    crafts = {
        f"{s}, {a}": store.craft(Craft(source, attack, study.data, "development", 0, n, study.seed, study.precision)).x
        for s, source in study.sources.items()
        for a, attack in study.attacks.items()
    }
    found = []
    for name in asked.only.split(",") if asked.only else study.targets:
        found.append(candidate(study, name, crafts, store))
        r = found[-1]
        print(
            f"{name:32s} clean {r['clean']:.3f}  seen {cell(r['worst'])}  stand-in {cell(r['unseen'])}  {r['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.page:
        renew(Path(asked.page[0]), asked.page[1], shown(found, n))
    else:
        print(shown(found, n))


if __name__ == "__main__":
    run(main)
