"""TRS: its terms on linear members, the points where it looks, and the gradients of members on digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import (
    MIXED,
    MLPS,
    a_batch,
    accuracy,
    cosines,
    held_out,
    linear_members,
    numbers,
    trained,
    transfer,
    value_of,
    weakest,
)
from defence_fakes import Small, Toy, same, weights
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import MLP, Committee
from firedoor.defences.losses.committee_terms import cross_entropies, input_gradients
from firedoor.defences.losses.joint import JointCrossEntropy
from firedoor.defences.losses.trs import TRS
from firedoor.members import Members

GENTLE = TRS(la=2, lb=0.02, rise=10, steps=1)
A, B = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 1.0, 1.5])
X, Y = 0.3 + 0.4 * numbers(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])


def pair() -> Members:
    """Two linear members of two classes, with logit differences A x and B x."""
    return linear_members(torch.stack([torch.zeros(3), A]), torch.stack([torch.zeros(3), B]))


def shown(loss: TRS, epoch: int = 0) -> Tensor:
    """The points at which a step of training asks for smoothness."""
    module, seen = pair(), []
    hook = module.members[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    value_of(loss, module, a_batch(X, Y, epoch))
    hook.remove()
    return seen[-1]


def steep(x: Tensor) -> Tensor:
    """mean_i |g_i|^2 in closed form: (1 - p_y)^2 |w|^2."""
    sign = 2.0 * Y - 1
    return torch.stack([torch.sigmoid(-sign * (x @ w)).square() * w.square().sum() for w in (A, B)]).mean(0)


def test_each_term_by_hand() -> None:
    module, batch = pair(), a_batch(X, Y)
    plain = value_of(JointCrossEntropy(), module, batch)
    alike = value_of(TRS(la=3, lb=0), module, batch) - plain
    assert float(alike.detach()) == pytest.approx(3 * abs(float(A @ B) / float(A.norm() * B.norm())), rel=1e-4)
    opposed = linear_members(torch.stack([torch.zeros(3), A]), torch.stack([A, torch.zeros(3)]))
    turned = value_of(TRS(la=3, lb=0), opposed, batch) - value_of(JointCrossEntropy(), opposed, batch)
    assert float(turned.detach()) == pytest.approx(3, rel=1e-4), "opposed gradients are as bad as equal ones"
    smooth = value_of(TRS(la=0, lb=2, eps=0, eps_end=0), module, batch) - plain
    torch.testing.assert_close(smooth, 2 * steep(X).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("epoch", "eps"), [(0, 0.01), (5, 0.02), (10, 0.03), (40, 0.03)])
def test_half_the_points_are_clean_and_half_are_the_steepest_of_a_growing_ball(epoch: int, eps: float) -> None:
    w = A.abs()[:, None]
    same_sign = linear_members(torch.cat([0 * w, w], 1).T, torch.cat([0 * w, 2 * w], 1).T)
    seen: list[Tensor] = []
    hook = same_sign.members[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    value_of(TRS(rise=10), same_sign, a_batch(X, Y, epoch))
    hook.remove()
    x = seen[-1]
    assert torch.equal(x[:3], X[:3]), "the first half is clean"
    away = -(2.0 * Y[3:] - 1)[:, None] * eps  # where all weights are positive, a lower margin is steeper for both members
    torch.testing.assert_close(x[3:], X[3:] + away.expand(3, 3), rtol=0, atol=1e-6)


def test_the_points_are_steeper_than_clean_ones_and_keyed() -> None:
    x = shown(TRS(eps_end=0.3, eps=0.3))
    assert bool((steep(x)[3:] > 1.1 * steep(X)[3:]).all())
    assert torch.equal(x, shown(TRS(eps_end=0.3, eps=0.3)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_search_leaves_the_network_as_it_was(mode: Any) -> None:
    data = Toy()
    with seed.forked(0, "weights"):
        module = Committee((Small(0.2), Small(0.2))).build(data.shape, 3).train()
    before, state = weights(module), torch.random.get_rng_state()
    split = data.split("target")
    batch = a_batch(split.x[:8], split.y[:8])
    with seed.streams(0, batch.ids):
        points = TRS(inner_mode=mode)._points(module, batch)
    assert not points.requires_grad
    assert same(before, weights(module)), "weights or buffers changed"
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(m.training for m in module.modules())


def steepness(module: Members) -> float:
    x, y = held_out().x[:200].clone().requires_grad_(), held_out().y[:200]
    gradients = input_gradients(cross_entropies(list(module.members), x, y), x)
    return float(torch.stack([g.detach().square().sum(1) for g in gradients]).mean())


@pytest.mark.parametrize(
    "members",
    [pytest.param(MLPS[:2], marks=pytest.mark.slow), MLPS, pytest.param(MIXED, marks=pytest.mark.slow)],
    ids=["two", "three", "mixed"],
)
def test_it_turns_the_members_gradients_apart_and_makes_them_short(members: tuple[MLP, ...]) -> None:
    plain, apart = trained(JointCrossEntropy(), members), trained(GENTLE, members)
    before, after = float(cosines(plain).abs().mean()), float(cosines(apart).abs().mean())
    assert after < before - 0.1, (before, after)
    assert steepness(apart) < 0.7 * steepness(plain), (steepness(apart), steepness(plain))
    assert accuracy(apart) > accuracy(plain) - 0.05, (accuracy(apart), accuracy(plain))
    assert weakest(apart) > weakest(plain) - 0.1, (weakest(apart), weakest(plain))
    assert transfer(apart) < transfer(plain) - 0.1, (transfer(apart), transfer(plain))


def test_one_member_is_still_made_smooth() -> None:
    module = linear_members(torch.stack([torch.zeros(3), A]))
    assert isinstance(module.members[0], nn.Linear)
    more = value_of(TRS(lb=1), module, a_batch(X, Y)) - value_of(JointCrossEntropy(), module, a_batch(X, Y))
    assert float(more.detach()) > 0.1
