"""Run by `torchrun`: adversarial training on the digits, the weights of each process in a file of its own."""

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


def main() -> None:
    torch.set_num_threads(1)
    folder, data = Path(sys.argv[1]), Digits(Splits(train=330, development=100, evaluation=20))
    with seed.forked(0, "weights"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))
    safetensors.torch.save_file({k: v.clone() for k, v in module.state_dict().items()}, folder / "start")
    fit = Fit(loss=Madry(PGD(Linf(20 / 255), steps=3)), epochs=3, batch_size=65, lr=0.05, clip_gradient=1.0)
    training = fit.train(module, data.split("target"), None, 0)  # type: ignore[arg-type]
    safetensors.torch.save_file(training.members[0], folder / f"rank{os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    main()
