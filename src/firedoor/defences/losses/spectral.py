"""No layer may amplify its input by more than a bound: weights are put back under it after each step of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.committee_terms import layers_of
from firedoor.defences.losses.inner import frozen
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["Spectral"]

AT_END = 200  # power iterations after each epoch
SLACK = 1e-3  # they come from below, by less than this once they have converged

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Spectral:
    """Cross-entropy, with sigma_max <= c for each convolution and linear layer: a weight over the bound is scaled by c / sigma_max.

    sigma_max is that of the linear map on inputs of the size which the layer gets, found by power iteration. Weights are projected
    before each batch, by `iterations` iterations that go on from those of the batch before, and after each epoch by 200. So the
    bound holds for what comes out, and for an average of epochs; `ema` also averages weights of between, which exceed it a little. Where activations have slope 1 at most and layers follow one another, the network's Lipschitz constant is at most the
    product of the bounds. Batch normalisation undoes this: its scale is no part of any layer here. One pass. A bound that no weight
    reaches is plain training. One model gains by it; members of an ensemble may fool each other more (LOTOS).
    Errors: SpecError for a field that is not positive.

    Family: regularisation. Year: 2021.
    Reference: Gouk et al. 2021, arXiv:1804.04368; Miyato et al. 2018, sec. 2.1, arXiv:1802.05957 (power iteration).
    """

    c: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise SpecError(f"Spectral: c must be positive and finite, got {self.c}. Try 1 to 4.")
        if self.iterations < 1:
            raise SpecError(f"Spectral: iterations must be 1 or more, got {self.iterations}. Try 3.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load. A checkpoint of the training holds what the power iterations have found."""
        return _Bounded(self.c, self.iterations)


class _Bounded:
    """The loss, with what each layer amplifies most: (1, *shape) of length 1, by the layer's name."""

    def __init__(self, c: float, iterations: int) -> None:
        self.c, self.iterations = c, iterations
        self.tops: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        if self.tops:
            self._project(module, self.iterations)
        else:
            self.tops = _first_tops(module, batch)
            self._project(module, AT_END)
        return cross_entropy(module(batch.x), batch.y).mean()

    def epoch_end(self, module: nn.Module, epoch: int) -> bool:
        """The bound holds; training goes on."""
        self._project(module, AT_END)
        return False

    def state(self) -> dict[str, Tensor]:
        """What the next projection depends on."""
        return dict(self.tops)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.tops = dict(state)

    def _project(self, module: nn.Module, iterations: int) -> None:
        layers = dict(module.named_modules())
        for name, v in self.tops.items():
            layer = layers[name]
            assert isinstance(layer, Layer)
            self.tops[name], sigma = _largest(layer, v.to(layer.weight), iterations)
            if sigma > self.c * (1 - SLACK):
                with torch.no_grad():
                    layer.weight.mul_(self.c * (1 - SLACK) / sigma)


def _first_tops(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Random directions in the input of each layer that the network uses."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape[1:] if isinstance(layer, nn.Conv2d) else inputs[0].shape[-1:])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers_of(module)]
    try:
        with frozen(module, batch, "eval") as classifier, torch.no_grad():
            classifier(batch.x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    named = {name: shapes[layer] for name, layer in module.named_modules() if layer in shapes}
    with seed.streams(0, ["Spectral"]):
        return {name: seed.normal(batch.x.new_zeros(1, *shape)) for name, shape in named.items()}


def _largest(layer: Layer, v: Tensor, iterations: int) -> tuple[Tensor, float]:
    """The direction that the layer amplifies most, and by how much: each iteration takes v to A^T A v, the gradient of |A v|^2 / 2."""
    weight = layer.weight.detach()
    for _ in range(iterations):
        v = v.detach().requires_grad_()
        (v,) = torch.autograd.grad(_linear(layer, v, weight).square().sum() / 2, v)
        v = v / torch.linalg.vector_norm(v).clamp_min(1e-30)
    return v.detach(), float(torch.linalg.vector_norm(_linear(layer, v, weight)))


def _linear(layer: Layer, v: Tensor, weight: Tensor) -> Tensor:
    """The layer without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(v, weight)
    out: Tensor = layer._conv_forward(v, weight, None)
    return out
