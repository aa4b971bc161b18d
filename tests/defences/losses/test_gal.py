"""GAL: its formula on linear members, its second derivative, and the gradients of members on digits."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import MIXED, MLPS, a_batch, accuracy, cosines, linear_members, numbers, trained, transfer, value_of, weakest

from firedoor import seed
from firedoor.architectures import MLP, Committee, SmallCNN
from firedoor.defences.losses.gal import GAL
from firedoor.defences.losses.joint import JointCrossEntropy

Y = torch.tensor([0, 1, 1])


def two_class(*direction: float) -> torch.Tensor:
    """A linear model of two classes, whose gradient lies along this direction."""
    w = torch.tensor(direction, dtype=torch.float32)
    return torch.stack([torch.zeros_like(w), w])


def test_the_loss_by_hand() -> None:
    """The gradient of a linear member of two classes is +-w: cosines of 0, 0.6 and 0.8."""
    module = linear_members(two_class(2, 0), two_class(0, 3), two_class(0.6, 0.8))
    x = numbers(3, 2)
    plain = value_of(JointCrossEntropy(), module, a_batch(x, Y))
    value = value_of(GAL(0.5), module, a_batch(x, Y))
    term = math.log(math.exp(0) + math.exp(0.6) + math.exp(0.8))
    assert float((value - plain).detach()) == pytest.approx(3 * 0.5 * term, rel=1e-5)
    pair = linear_members(two_class(2, 0), two_class(-4, 0))
    term_of_two = value_of(GAL(1), pair, a_batch(x, Y)) - value_of(JointCrossEntropy(), pair, a_batch(x, Y))
    assert float(term_of_two.detach()) == pytest.approx(-2)


def test_its_gradient_by_the_weights_is_right() -> None:
    """Central differences in double precision, on smooth members with a convolution."""
    with seed.forked(0, "weights"):
        module = Committee((SmallCNN(2, 4, "silu"), MLP(4, 1, "silu"))).build((1, 4, 4), 3).double()
    x, y, loss = numbers(3, 1, 4, 4).double(), torch.tensor([0, 1, 2]), GAL(2.0)
    value_of(loss, module, a_batch(x, y)).backward()  # type: ignore[no-untyped-call]
    for name, p in module.named_parameters():
        assert p.grad is not None
        direction, step, values = p.grad / p.grad.abs().max(), 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * step * direction
            values.append(float(value_of(loss, module, a_batch(x, y)).detach()))
            with torch.no_grad():
                p -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((p.grad * direction).sum()), rel=1e-5), name


@pytest.mark.parametrize(
    "members",
    [pytest.param(MLPS[:2], marks=pytest.mark.slow), MLPS, pytest.param(MIXED, marks=pytest.mark.slow)],
    ids=["two", "three", "mixed"],
)
def test_it_turns_the_members_gradients_apart(members: tuple[MLP, ...]) -> None:
    plain, apart = trained(JointCrossEntropy(), members), trained(GAL(), members)
    before, after = float(cosines(plain).mean()), float(cosines(apart).mean())
    assert after < before - 0.2, (before, after)
    assert accuracy(apart) > accuracy(plain) - 0.05, (accuracy(apart), accuracy(plain))
    assert weakest(apart) > weakest(plain) - 0.1, (weakest(apart), weakest(plain))
    assert transfer(apart) < transfer(plain) - 0.1, (transfer(apart), transfer(plain))
