"""InputGradient: its formula on a linear model, its second derivative, and the gradients of a network on digits."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import a_batch, held_out, numbers, value_of
from digit_fakes import CNN, accuracy, check_gradient, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import nn

from firedoor import seed
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.input_gradient import InputGradient
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy

X, Y = numbers(6, 4), torch.arange(6) % 2
W = 3 * numbers(2, 4, key="w") - 1.5


def test_the_loss_by_hand() -> None:
    """Two classes: the gradient of one example's cross-entropy is (1 - p_y) w, so its size is per example, not of the batch mean."""
    w = (W[1] - W[0]).double()
    margin = (2 * Y - 1) * (X.double() @ w)
    missed = 1 / (1 + margin.exp())
    by_hand = ((1 + (-margin).exp()).log() + 0.7 * missed**2 * (w @ w)).mean()
    value = value_of(InputGradient(0.7), linear(W), a_batch(X, Y))
    assert float(value.detach()) == pytest.approx(float(by_hand), rel=1e-5)


def test_its_gradient_by_the_weights_is_right() -> None:
    with seed.forked(0, "weights"):
        module = SmallCNN(2, 4, "silu").build((1, 4, 4), 3).double()
    check_gradient(InputGradient(5.0), module, a_batch(numbers(3, 1, 4, 4).double(), torch.tensor([0, 1, 2])))


def test_without_lam_it_is_plain_training() -> None:
    assert trained_alike(InputGradient(0.0), CrossEntropy())
    assert not trained_alike(InputGradient(0.1), CrossEntropy())


def test_it_costs_one_forward_pass_and_refuses_a_negative_lam() -> None:
    assert passes(InputGradient(), architecture=CNN) == 1
    for wrong in (-1.0, math.nan):
        with pytest.raises(SpecError, match="InputGradient: lam must be 0 or more and finite, got"):
            InputGradient(wrong)


def steepness(module: nn.Module) -> float:
    """Mean squared input gradient of the cross-entropy on held-out digits."""
    x = held_out().x.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(module(x), held_out().y).sum(), x)
    return float(g.flatten(1).square().sum(1).mean())


def test_more_of_it_flattens_the_loss_and_hides_nothing() -> None:
    modules = [plain(), *(fitted(InputGradient(lam))[0] for lam in (0.1, 1.0))]
    steep = [steepness(m) for m in modules]
    assert steep[1] < 0.6 * steep[0], steep
    assert steep[2] < 0.6 * steep[1], steep
    robust = [robust_accuracy(m) for m in modules]
    assert robust[2] > robust[0] + 0.1, robust
    assert accuracy(modules[1]) > 0.9
