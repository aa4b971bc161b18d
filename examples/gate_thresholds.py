"""The threshold of every gate of a study: python examples/gate_thresholds.py STUDY --store STORE [--only NAME,...]

The rule is that of studies/cifar10.toml: the lowest of THRESHOLDS at which the gate is right on as many clean development images as the
model before it alone. Lower ones let fewer attacks pass and cost clean accuracy. Trains what the store does not have; reads neither
evaluation images nor any source, so that it may be run before anything held out is looked at.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pages import run

from firedoor import study as studies
from firedoor.craft import predict
from firedoor.defences.wrappers.gate import Gate
from firedoor.models.wrapped import Wrapped
from firedoor.protocols import Model, Split
from firedoor.store import FileStore

THRESHOLDS = [t / 4 for t in range(-8, 13)]


def right(model: Model, split: Split, store: FileStore) -> float:
    return float((predict(model.load(store), split.x, split.ids, 0) == split.y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--store", required=True)
    parser.add_argument("--only", default="", help="names of targets, with commas between them")
    asked = parser.parse_args()
    study, store = studies.load(asked.study), FileStore(asked.store)
    split = study.data.split("development")
    for name in asked.only.split(",") if asked.only else study.targets:
        target = study.targets[name]
        if not (isinstance(target, Wrapped) and isinstance(target.wrapper, Gate)):
            continue
        alone = right(target.model, split, store)
        gates = {t: replace(target, wrapper=replace(target.wrapper, threshold=t)) for t in THRESHOLDS}
        at = {t: right(gate, split, store) for t, gate in gates.items()}
        kept = [t for t in THRESHOLDS if at[t] >= alone]
        print(f"{name}: threshold {min(kept) if kept else 'none'}; clean {100 * alone:.1f} % without the gate, by threshold:")
        print("  " + ", ".join(f"{t:g}: {100 * share:.1f}" for t, share in at.items()))


if __name__ == "__main__":
    run(main)
