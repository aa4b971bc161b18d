"""Do our attacks reach what other libraries' attacks of the same name reach? One JSON line, the last one on stdout.

Two networks are trained on 6,000 Fashion-MNIST images, grey repeated into three channels (TI of both libraries takes no other number).
Each attack, ours and theirs at equal settings, runs on the source with 1,000 test images that both networks know. Rates are those of
images that the source (white box) and the target (transfer) then get wrong, with Wilson 95 % intervals. A pair agrees if each rate
lies in the other's interval, or if `difference` names what their definition does differently: then both rates stand side by side.

Usage, in the environment of constraints/peers.txt: python benchmarks/agreement.py [IMAGES]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import VGG, SmallCNN
from firedoor.attacks import APGD, DI_FGSM, MI_FGSM, PGD, SI_NI_FGSM, TI_FGSM, VMI_FGSM, Square
from firedoor.attacks.plugins.from_art import ART
from firedoor.attacks.plugins.from_torchattack import Torchattack
from firedoor.attacks.plugins.from_torchattacks import Torchattacks
from firedoor.craft import predict
from firedoor.data import FashionMNIST
from firedoor.data.splits import Splits
from firedoor.defences import Fit
from firedoor.protocols import Attack, Split
from firedoor.stats import wilson
from firedoor.store import FileStore
from firedoor.threat import Linf

EPS = Linf(24 / 255)
CLIMB, QUERIES, NEIGHBOURS, COPIES, KERNEL = 50, 300, 5, 5, 5
LAST = "It stops at the first success, and gives {} where there is none; ours goes on to the best loss, which transfers better."
SQUARES = " One square per batch; ours draws for each example."
DRAWN = "One size and place per batch; ours draws for each example."
FORGETS = "Defect: momentum is overwritten, so each step starts from the current gradient alone"


class Pair(NamedTuple):
    """Our attack and one of theirs; difference: what their definition does otherwise, '' where it is ours."""

    name: str
    library: str
    ours: Attack
    theirs: Attack
    difference: str = ""


def pairs() -> Iterator[Pair]:
    """Ten steps of eps/10, PGD of 2.5 eps/10; as many gradients for either side, or as many proposals."""
    vmi, si = VMI_FGSM(EPS, n=NEIGHBOURS), SI_NI_FGSM(EPS, m=COPIES)
    one, two, art = "torchattacks", "torchattack", "art"
    yield Pair("PGD", one, PGD(EPS), Torchattacks(EPS, "PGD"))
    yield Pair("PGD", two, PGD(EPS), Torchattack(EPS, "PGD"))
    yield Pair("MI", one, MI_FGSM(EPS), Torchattacks(EPS, "MIFGSM"))
    yield Pair("MI", two, MI_FGSM(EPS), Torchattack(EPS, "MIFGSM"))
    shrinks = "It shrinks the image and pads it to its size; ours enlarges the canvas and resizes back."
    yield Pair("DI", one, DI_FGSM(EPS), Torchattacks(EPS, "DIFGSM"), f"{DRAWN} {shrinks}")
    yield Pair("DI", two, DI_FGSM(EPS), Torchattack(EPS, "DIFGSM"), f"{DRAWN} {shrinks} It resizes to the nearest pixel.")
    yield Pair("TI", one, TI_FGSM(EPS, kernel=KERNEL), Torchattacks(EPS, "TIFGSM", kernel=KERNEL))
    wide = "and the kernel is the root of a Gaussian, so wider by the root of 2."
    yield Pair("TI", two, TI_FGSM(EPS, kernel=KERNEL), Torchattack(EPS, "TIFGSM", kernel=KERNEL), f"{FORGETS}, {wide}")
    yield Pair("SI-NI", one, si, Torchattacks(EPS, "SINIFGSM", m=COPIES))
    twice = "and the gradients of brighter copies are added again with each darker one."
    yield Pair("SI-NI", two, si, Torchattack(EPS, "SINIFGSM", m=COPIES), f"{FORGETS}, {twice}")
    yield Pair("VMI", one, vmi, Torchattacks(EPS, "VMIFGSM", n=NEIGHBOURS))
    yield Pair("VMI", two, vmi, Torchattack(EPS, "VMIFGSM", n=NEIGHBOURS))
    climb = APGD(EPS, steps=CLIMB)
    yield Pair("APGD", one, climb, Torchattacks(EPS, "APGD", steps=CLIMB - 1))
    last = "Defect: the last iterate is returned instead of the best one, and the random start where that fools nobody."
    yield Pair("APGD", art, climb, ART(EPS, "AutoProjectedGradientDescent", steps=CLIMB), last)
    square = Square(EPS, queries=QUERIES)
    yield Pair("Square", one, square, Torchattacks(EPS, "Square", steps=QUERIES - 1), LAST.format("the clean image") + SQUARES)
    proposals = ART(EPS, "SquareAttack", steps=QUERIES - 1)
    yield Pair("Square", art, square, proposals, LAST.format("the best point") + SQUARES)


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGAN:6.0f} s  {text}", file=sys.stderr, flush=True)


def networks() -> tuple[nn.Module, nn.Module, Split]:
    """Source, target, and the evaluation images that both get right."""
    data = FashionMNIST(splits=Splits(train=6000, development=500, evaluation=2000))
    coloured = {part: _coloured(data.split(part)) for part in ("source", "target", "evaluation")}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for key, part, recipe in ((102, "source", SmallCNN(width=8)), (1, "target", VGG(width=8))):
            with seed.forked(key, "weights"):
                module = recipe.build((3, *data.shape[1:]), len(data.classes))
            fit = Fit(epochs=6, optimiser="adamw", lr=0.003)
            module.load_state_dict(fit.train(module, coloured[part], FileStore(folder), key).members[-1])
            found.append(module.eval().requires_grad_(False))
            right = _right(module, coloured["evaluation"])
            say(f"{type(recipe).__name__} trained as {part}, clean accuracy {float(right.float().mean()):.3f}")
    test = coloured["evaluation"]
    rows = (_right(found[0], test) & _right(found[1], test)).nonzero()[:, 0][:IMAGES].tolist()
    return found[0], found[1], Split(test.x[rows], test.y[rows], tuple(test.ids[i] for i in rows))


def _coloured(split: Split) -> Split:
    return Split(split.x.repeat(1, 3, 1, 1), split.y, split.ids)


def _right(model: nn.Module, split: Split) -> Tensor:
    return predict(model, split.x, split.ids, 0) == split.y


def rates(attack: Attack, source: nn.Module, target: nn.Module, split: Split) -> dict[str, list[float]]:
    """Share of images that source and target get wrong afterwards: rate, and the ends of its interval."""
    size = 100  # as many batches as it takes to average over what others draw once per batch, which no interval counts
    crafted = []
    for start in range(0, len(split), size):
        part = split[start : start + size]
        with seed.streams(0, part.ids, purpose="agreement"):
            crafted.append(attack(source, part.x, part.y))
    moved = Split(torch.cat(crafted), split.y, split.ids)
    EPS.check(moved.x, split.x)
    found = {}
    for name, model in (("white_box", source), ("transfer", target)):
        estimate = wilson(int((~_right(model, moved)).sum()), len(split))
        found[name] = [round(float(v), 4) for v in (estimate.value, estimate.low, estimate.high)]
    return found


def inside(one: list[float], other: list[float]) -> bool:
    """Whether each rate lies in the other's interval."""
    return one[1] <= other[0] <= one[2] and other[1] <= one[0] <= other[2]


def main() -> None:
    source, target, split = networks()
    known: dict[Attack, dict[str, list[float]]] = {}
    rows = []
    for pair in pairs():
        began = time.perf_counter()
        if pair.ours not in known:
            known[pair.ours] = rates(pair.ours, source, target, split)
        ours, middle = known[pair.ours], time.perf_counter()
        theirs = rates(pair.theirs, source, target, split)
        same = {name: inside(ours[name], theirs[name]) for name in ours}
        rows.append(
            {
                "attack": pair.name,
                "library": pair.library,
                "ours": ours,
                "theirs": theirs,
                "inside": same,
                "difference": pair.difference,
                "agrees": all(same.values()) or bool(pair.difference),
                "gradients": [pair.ours.gradients, pair.theirs.gradients],
                "queries": [pair.ours.queries, pair.theirs.queries],
                "version": pair.theirs.digest().split(" ")[1],
                "seconds": [round(middle - began, 1), round(time.perf_counter() - middle, 1)],
            }
        )
        word = "equal" if all(same.values()) else "named difference" if pair.difference else "DISAGREE"
        say(f"{pair.name:7}{pair.library:13}{word:17} transfer {ours['transfer'][0]:.3f} {theirs['transfer'][0]:.3f}"
            f"  white box {ours['white_box'][0]:.3f} {theirs['white_box'][0]:.3f}")  # fmt: skip
    found = {"n": len(split), "eps": round(EPS.eps * 255), "agree": all(r["agrees"] for r in rows), "torch": torch.__version__}
    print(json.dumps({**found, "minutes": round((time.perf_counter() - BEGAN) / 60, 1), "pairs": rows}))
    sys.exit(0 if found["agree"] else 1)


if __name__ == "__main__":
    BEGAN = time.perf_counter()
    IMAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    main()
