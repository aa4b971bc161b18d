"""Jacobian: an unbiased estimate where the answer is known, its second derivative, and the Jacobian of a network on digits."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import a_batch, held_out, numbers, value_of
from digit_fakes import CNN, accuracy, check_gradient, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import nn
from torch.func import jacrev, vmap

from firedoor import seed
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.jacobian import Jacobian
from firedoor.errors import SpecError


@pytest.mark.parametrize("classes", [2, 5])
def test_the_estimate_is_unbiased_on_a_linear_model(classes: int) -> None:
    """There J is W at every x, and each of n examples draws its own direction."""
    n, w = 4000, 3 * numbers(classes, 4, key="w") - 1.5
    w[0] *= 4  # far from orthogonal rows of one length, for which every draw would be exact
    x, y, lam = numbers(n, 4), torch.arange(n) % classes, 0.3
    plainly = nn.functional.cross_entropy(x @ w.T, y)
    estimate = (float(value_of(Jacobian(lam), linear(w), a_batch(x, y)).detach()) - float(plainly)) / lam
    sizes = torch.linalg.svdvals(w).square()
    spread = float(sizes.sum()) * classes  # no draw exceeds this
    assert estimate == pytest.approx(float(sizes.sum()), abs=4 * spread / 2 / n**0.5)
    assert estimate == pytest.approx(float(sizes.sum()), rel=0.06)


def test_orthogonal_rows_of_one_length_are_estimated_exactly() -> None:
    x, y = numbers(5, 4), torch.arange(5) % 3
    w = 2 * torch.eye(4)[:3]
    value = value_of(Jacobian(1.0), linear(w), a_batch(x, y)) - nn.functional.cross_entropy(x @ w.T, y)
    assert float(value.detach()) == pytest.approx(12, rel=1e-5)


def test_its_gradient_by_the_weights_is_right() -> None:
    with seed.forked(0, "weights"):
        module = SmallCNN(2, 4, "silu").build((1, 4, 4), 3).double()
    check_gradient(Jacobian(0.5), module, a_batch(numbers(3, 1, 4, 4).double(), torch.tensor([0, 1, 2])))


def test_without_lam_it_is_plain_training() -> None:
    assert trained_alike(Jacobian(0.0), CrossEntropy())
    assert not trained_alike(Jacobian(0.01), CrossEntropy())


def test_it_costs_one_forward_pass_and_refuses_a_negative_lam() -> None:
    assert passes(Jacobian(), architecture=CNN) == 1
    for wrong in (-1.0, math.nan):
        with pytest.raises(SpecError, match="Jacobian: lam must be 0 or more and finite, got"):
            Jacobian(wrong)


def size(module: nn.Module) -> float:
    """Mean squared Frobenius norm of the true Jacobian on held-out digits."""
    jacobians = vmap(jacrev(lambda x: module(x[None])[0]))(held_out().x[:100])
    return float(jacobians.flatten(1).square().sum(1).mean().detach())


def test_more_of_it_shrinks_the_jacobian_and_hides_nothing() -> None:
    modules = [plain(), *(fitted(Jacobian(lam))[0] for lam in (0.001, 0.01))]
    sizes = [size(m) for m in modules]
    assert sizes[1] < 0.5 * sizes[0], sizes
    assert sizes[2] < 0.5 * sizes[1], sizes
    assert robust_accuracy(modules[2]) > robust_accuracy(modules[0]) + 0.15
    assert accuracy(modules[2]) > 0.9
