"""The threshold of every gate of a study: python examples/gate_thresholds.py STUDY --store STORE [--only NAME,...]

The rule is that of studies/cifar10.toml: the lowest of THRESHOLDS at which the gate is right on as many clean development images as the
model before it alone. Lower ones let fewer attacks pass and cost clean accuracy. Trains what the store does not have; reads neither
evaluation images nor any source, so that it may be run before anything held out is looked at.
"""

from __future__ import annotations

import argparse

import torch

from firedoor import study as studies
from firedoor.defences.wrappers.gate import Gate
from firedoor.models.wrapped import Wrapped
from firedoor.store import FileStore

THRESHOLDS = [t / 4 for t in range(-8, 13)]
BATCH = 250


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
        calm, alert, alarm = (store.live(m) for m in (target.model, target.wrapper.hardened, target.wrapper.alarm))
        with torch.no_grad():
            said = [(calm(x).log_softmax(1), alert(x).log_softmax(1), alarm(x)[:, :1]) for x in split.x.split(BATCH)]
        quiet, loud, rung = (torch.cat(part) for part in zip(*said, strict=True))
        alone = right(quiet, split.y)
        at = {t: right(answer(quiet, loud, rung - t), split.y) for t in THRESHOLDS}
        kept = [t for t in THRESHOLDS if at[t] >= alone]
        print(f"{name}: threshold {min(kept) if kept else 'none'}; clean {100 * alone:.1f} % without the gate, by threshold:")
        print("  " + ", ".join(f"{t:g}: {100 * share:.1f}" for t, share in at.items()))


def answer(calm: torch.Tensor, alert: torch.Tensor, alarm: torch.Tensor) -> torch.Tensor:
    """Probabilities (n, k) of the gate: those of `calm`, and of `alert` as far as the alarm says."""
    share = alarm.sigmoid()
    return (1 - share) * calm.exp() + share * alert.exp()


def right(scores: torch.Tensor, y: torch.Tensor) -> float:
    return float((scores.argmax(1) == y).float().mean())


if __name__ == "__main__":
    main()
