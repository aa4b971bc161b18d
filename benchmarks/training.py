"""How long adversarial training takes beside a bare PyTorch loop, and beside ART's trainer. One JSON line, the last one on stdout.

A ResNet (depth 8, width 16) on 32x32 colour images, batches of 128, SGD, float32, channels last, L-inf 8/255. PGD-AT takes 7 steps;
PubDef is shown clean images and the stored crafts of 3 sources ("all"). Everyone trains on the same images in rounds of two turns, the
second in the opposite order, in case who comes after whom matters; a ratio is the median over rounds of our seconds over
theirs in the same round. Speed does not depend on what images show, so these are drawn.

Usage, in the environment of constraints/peers.txt: python benchmarks/training.py [IMAGES] [ROUNDS]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from firedoor import device, seed
from firedoor.architectures import ResNet, SmallCNN
from firedoor.attacks import PGD
from firedoor.data import Shapes
from firedoor.data.splits import Splits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.pubdef import PubDef
from firedoor.models.trained import Trained
from firedoor.protocols import BatchLoss, Split
from firedoor.store import FileStore
from firedoor.threat import Linf

EPS, STEP, STEPS, BATCH, LR = 8 / 255, 2 / 255, 7, 128, 0.05
THREAT = Linf(EPS)


def network() -> nn.Module:
    """The same weights for everyone."""
    with seed.forked(0, "weights"):
        return device.placed(ResNet(depth=8, width=16).build((3, 32, 32), 10))


def ours(loss: BatchLoss, split: Split, store: FileStore) -> float:
    """Seconds of one epoch."""
    module = network()
    began = time.perf_counter()
    Fit(loss=loss, epochs=1, batch_size=BATCH, lr=LR, schedule="constant").train(module, split, store, 0)
    return time.perf_counter() - began


def bare_pgd(split: Split) -> float:
    """Madry et al. as one would write it by hand."""

    def example(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_(True)
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(module(x_adv), y), x_adv)
            with torch.no_grad():
                x_adv = (x_adv + STEP * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        return x_adv

    return _bare(split, lambda module, rows: (example(module, split.x[rows], split.y[rows]), split.y[rows]))


def bare_pubdef(split: Split, crafts: list[Tensor]) -> float:
    """Clean images and the crafts of each source, from uint8 tensors in memory."""

    def batch(_module: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        stored = [c[rows].float() / 255 for c in crafts]
        return torch.cat([split.x[rows], *stored]), split.y[rows].repeat(1 + len(crafts))

    return _bare(split, batch)


def _bare(split: Split, batch: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]) -> float:
    module = network().train().requires_grad_(True)
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    began = time.perf_counter()
    for rows in torch.randperm(len(split)).split(BATCH):
        x, y = batch(module, rows)
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    return time.perf_counter() - began


def art(split: Split) -> float:
    """AdversarialTrainerMadryPGD of the Adversarial Robustness Toolbox."""
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    module = network().requires_grad_(True)
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    wrapped = PyTorchClassifier(
        module, nn.CrossEntropyLoss(), (3, 32, 32), 10, optimizer=optimiser, clip_values=(0, 1), device_type="cpu"
    )
    trainer = AdversarialTrainerMadryPGD(wrapped, nb_epochs=1, batch_size=BATCH, eps=EPS, eps_step=STEP, max_iter=STEPS)
    trainer.attack.set_params(verbose=False)
    x, y = split.x.numpy(), np.eye(10, dtype=np.float32)[split.y.numpy()]
    began = time.perf_counter()
    trainer.fit(x, y)
    return time.perf_counter() - began


def main() -> None:
    """Train in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, nargs="?", default=1280)
    parser.add_argument("rounds", type=int, nargs="?", default=6)
    images, rounds = (options := parser.parse_args()).images, options.rounds
    data = Shapes(size=32, splits=Splits(train=images, development=10, evaluation=10))
    split = data.split("target")
    seconds: dict[str, list[float]] = {name: [] for name in ("PGD-AT", "PGD-AT bare", "PGD-AT ART", "PubDef", "PubDef bare")}
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(folder)
        quick = Fit(epochs=1, optimiser="adamw", lr=0.003)
        sources = tuple(Trained(SmallCNN(width=4), data, quick, seed=k) for k in range(3))
        pubdef = PubDef(sources, PGD(THREAT, steps=2), data, mode="all")
        pubdef.start(store, split)  # crafts are made once, before training, and stored
        crafts = [torch.randint(0, 256, split.x.shape, dtype=torch.uint8) for _ in sources]
        entrants: dict[str, Callable[[], float]] = {
            "PGD-AT": lambda: ours(Madry(PGD(THREAT, steps=STEPS, step_size=STEP)), split, store),
            "PGD-AT bare": lambda: bare_pgd(split),
            "PGD-AT ART": lambda: art(split),
            "PubDef": lambda: ours(pubdef, split, store),
            "PubDef bare": lambda: bare_pubdef(split, crafts),
        }
        for number in range(rounds + 1):
            taken = dict.fromkeys(entrants, 0.0)
            for name in (*entrants, *reversed(entrants)) if number else entrants:
                taken[name] += entrants[name]()
            for name in entrants if number else ():  # the first round warms up
                seconds[name].append(taken[name])
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)

    found: dict[str, object] = {
        "pgd_at_over_bare": ratio("PGD-AT", "PGD-AT bare"),
        "pubdef_over_bare": ratio("PubDef", "PubDef bare"),
        "art_over_bare": ratio("PGD-AT ART", "PGD-AT bare"),
        "bound": 1.05,
        "images_per_second": {name: round(2 * len(split) / statistics.median(values)) for name, values in seconds.items()},
        "images": len(split),
        "rounds": rounds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
