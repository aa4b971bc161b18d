"""One small network trained on digits with any loss, and how it stands up to PGD: for the tests of losses of single networks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import pytest
import torch
from committee_fakes import DIGITS, held_out, value_of
from defence_fakes import DictStore, same, weights
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures.mlp import MLP
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.defences.fit import Fit, Training
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.losses import cross_entropy
from firedoor.protocols import Access, Architecture, Batch, Model, Store
from firedoor.threat import Linf

NET = MLP(64, 2)  # learns to resist within a second
CNN = SmallCNN(8, 64)
ON_CNN = {"architecture": CNN, "batch_size": 25, "epochs": 8, "optimiser": "adamw", "lr": 0.01}
EPS = 0.15


def built(architecture: Architecture = NET) -> nn.Module:
    with seed.forked(0, "weights"):
        return architecture.build(DIGITS.shape, 10)


def fitted(loss: Any, architecture: Architecture = NET, n: int = 600, epochs: int = 10, **more: Any) -> tuple[nn.Module, Training]:
    """A network trained on n digits, and what its training cost."""
    module = built(architecture)
    fit = Fit(loss=loss, epochs=epochs, **{"batch_size": 40, "optimiser": "adamw", "lr": 0.005, **more})
    return module, fit.train(module, DIGITS.split("target")[:n], DictStore(), 0)


@lru_cache(maxsize=4)
def plain(on_cnn: bool = False) -> nn.Module:
    return fitted(CrossEntropy(), **(ON_CNN if on_cnn else {}))[0]


def trained_alike(one: Any, other: Any, **more: Any) -> bool:
    """Whether two losses train the same weights and buffers, bit for bit."""
    settings = {"n": 100, "epochs": 2, **more}
    return same(*(weights(fitted(loss, architecture=CNN, **settings)[0]) for loss in (one, other)))


def passes(loss: Any, **more: Any) -> float:
    return fitted(loss, n=100, epochs=1, **more)[1].passes


def accuracy(module: nn.Module) -> float:
    """Share of 400 held-out digits that it gets right."""
    with torch.no_grad():
        return float((module(held_out().x).argmax(1) == held_out().y).float().mean())


def robust_accuracy(module: nn.Module, eps: float = EPS, steps: int = 20) -> float:
    """The same under PGD from x."""
    x, y, threat = held_out().x, held_out().y, Linf(eps)
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(module(x_adv), y).sum(), x_adv)
        x_adv = threat.step(x_adv.detach(), x, g, eps / 6)
    with torch.no_grad():
        return float((module(x_adv).argmax(1) == y).float().mean())


def check_gradient(loss: Any, module: nn.Module, batch: Batch, tolerance: float = 1e-5) -> None:
    """The gradient of a loss by each weight of a smooth module in double precision is its central difference."""
    value_of(loss, module, batch).backward()  # type: ignore[no-untyped-call]
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        direction, step, values = p.grad / p.grad.abs().max(), 1e-5, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                p += sign * step * direction
            values.append(float(value_of(loss, module, batch).detach()))
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((p.grad * direction).sum()), rel=tolerance), name


class Live:
    """A recipe of a network that is already there."""

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load(self, store: Store) -> nn.Module:
        return self.module

    def relax(self) -> Model:
        return self


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear model (k, d)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
