"""Run by `torchrun`: a training on the digits, plain or averaged; the weights of each process end in a file of its own.

So do the names of the threads that are left when the process ends.
"""

import atexit
import os
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from firedoor import seed
from firedoor.attacks import PGD
from firedoor.data import Digits
from firedoor.data.splits import Splits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.madry import Madry
from firedoor.threat import Linf


def threads() -> str:
    """Of this process, by name, also those that Python did not start."""
    return " ".join(p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm"))


def main() -> None:
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    rank = os.environ.get("RANK", "0")
    atexit.register(lambda: (folder / f"threads{rank}").write_text(threads()))  # registered first, so called last
    madry = Madry(PGD(Linf(20 / 255), steps=3))
    with seed.forked(0, "weights"):
        if what == "plain":
            data = Digits(Splits(train=330, development=100, evaluation=20))
            module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))
            fit = Fit(loss=madry, epochs=3, batch_size=65, lr=0.05, clip_gradient=1.0)
        else:  # the last batch has two examples, so a third process has none
            data = Digits(Splits(train=122, development=100, evaluation=20))
            module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))
            fit = Fit(loss=madry, epochs=3, batch_size=30, lr=0.05, ema=0.9)
    safetensors.torch.save_file({k: v.clone() for k, v in module.state_dict().items()}, folder / "start")
    training = fit.train(module, data.split("target"), None, 0)  # type: ignore[arg-type]
    safetensors.torch.save_file(training.members[0], folder / f"rank{rank}")
    (folder / f"training{rank}").write_text(threads())


if __name__ == "__main__":
    main()
