"""MART: its formula on a linear model whose worst point is known, and what it is worth on digits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from committee_fakes import a_batch, numbers, value_of
from digit_fakes import EPS, ON_CNN, accuracy, check_gradient, fitted, linear, passes, plain, robust_accuracy
from torch import Tensor, nn

from firedoor.architectures.mlp import MLP
from firedoor.defences.losses.mart import MART, boosted_cross_entropy
from firedoor.errors import SpecError
from firedoor.threat import Linf

X, Y = 0.3 + 0.4 * numbers(6, 4), torch.arange(6) % 2  # no pixel within 0.1 of the box
W = 3 * numbers(2, 4, key="w") - 1.5


def logistic(m: Tensor) -> Tensor:
    return 1 / (1 + (-m).exp())


@pytest.mark.parametrize("lam", [0.0, 5.0])
def test_the_loss_by_hand(lam: float) -> None:
    """Two classes: the margin falls by eps |w|_1, and -log(1 - p_j) of the other class is -log p_y once more."""
    module, w = linear(W), (W[1] - W[0]).double()
    margin = (2 * Y - 1) * (X.double() @ w)
    p, q = logistic(margin), logistic(margin - 0.1 * w.abs().sum())
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    by_hand = (-2 * q.log() + lam * divergence * (1 - p)).mean()
    value = value_of(MART(Linf(0.1), lam=lam, steps=10), module, a_batch(X, Y))
    assert float(value.detach()) == pytest.approx(float(by_hand), rel=1e-5)


def test_boosting_asks_for_a_margin_over_the_best_other_class() -> None:
    z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [400.0, 0.0, -400.0]])
    y = torch.tensor([0, 0, 2])
    p = z.double().softmax(1)
    wanted = [-math.log(p[0, 0]) - math.log(1 - p[0, 1]), -math.log(p[1, 0]) - math.log(1 - p[1, 2]), 800 + 400]
    assert boosted_cross_entropy(z, y).tolist() == pytest.approx(wanted, rel=1e-6)
    z.requires_grad_()
    boosted_cross_entropy(z, y).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


def test_all_of_its_gradient_reaches_the_weights() -> None:
    """The weight of an example, 1 - p_y(x), is not taken as constant. At eps 0, x' is x and only the boosted term is left."""
    module = MLP(5, 1, "silu").build((4,), 3).double()

    class AtEdge(MART):
        def craft(self, module: nn.Module, batch: Any) -> Tensor:
            return batch.x + 0.1  # the envelope theorem holds only at the top, so x' stays where it is

    check_gradient(AtEdge(Linf(0.1), lam=5), module, a_batch(X.double(), torch.arange(6) % 3))


def test_it_costs_steps_and_two_passes() -> None:
    assert passes(MART(Linf(EPS), steps=3)) == 5
    assert passes(MART(Linf(EPS), steps=3, lam=0)) == 4


def test_wrong_fields_are_refused() -> None:
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(SpecError, match="MART: lam must be 0 or more and finite, got"):
            MART(Linf(0.1), lam=wrong)
    with pytest.raises(SpecError, match="MART: the threat must be untargeted, got targeted=True"):
        MART(Linf(0.1, targeted=True))


@pytest.mark.parametrize("on_cnn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_it_makes_digits_robust(on_cnn: bool) -> None:
    module, _ = fitted(MART(Linf(EPS), steps=3), **(ON_CNN if on_cnn else {}))
    before, after = robust_accuracy(plain(on_cnn)), robust_accuracy(module)
    assert after > before + 0.25, (before, after)
    assert accuracy(module) > 0.8
