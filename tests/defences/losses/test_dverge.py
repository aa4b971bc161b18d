"""DVERGE: what is moved where and shown to whom, and how far examples carry between members on digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import DIGITS, MIXED, MLPS, a_batch, accuracy, linear_members, numbers, trained, transfer, value_of, weakest
from defence_fakes import Small, Toy, same, weights
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import MLP, Committee, SmallCNN
from firedoor.defences.losses.committee_terms import layers_of
from firedoor.defences.losses.dverge import DVERGE
from firedoor.defences.losses.joint import JointCrossEntropy
from firedoor.errors import SpecError
from firedoor.members import Members

NOW = DVERGE(warm_up=0)
STRONG = DVERGE(eps=0.2, step_size=0.02, warm_up=4)
X, Y = numbers(8, 5), torch.arange(8) % 3


def moved(loss: DVERGE, member: nn.Module, partner: Tensor, epoch: int = 0) -> Tensor:
    return loss._move(member, a_batch(X, Y, epoch), partner)


def test_a_layer_that_sees_everything_is_shown_the_nearest_point_to_the_partner() -> None:
    """A layer that is the identity: x' is the partner, cut to the ball."""
    partner = numbers(8, 5, key="partner")
    (member,) = linear_members(torch.eye(5)).members
    x_adv = moved(DVERGE(eps=0.07, step_size=0.007), member, partner)
    far = (partner - X).abs() > 0.14
    assert float(far.float().mean()) > 0.3
    torch.testing.assert_close(x_adv[far], (X + 0.07 * (partner - X).sign())[far])
    assert float((x_adv - X).abs().max()) <= 0.07 + 1e-6
    assert float((x_adv - partner).square().sum()) < float((X - partner).square().sum())


def test_a_layer_that_is_blind_to_a_pixel_leaves_it() -> None:
    (member,) = linear_members(torch.eye(5)[:3]).members
    x_adv = moved(NOW, member, numbers(8, 5, key="partner"))
    assert torch.equal(x_adv[:, 3:], X[:, 3:])
    assert not torch.equal(x_adv[:, :3], X[:, :3])


def test_each_member_learns_from_the_others_examples_and_not_from_its_own() -> None:
    module = linear_members(*(torch.eye(5)[[k, (k + 1) % 5, (k + 2) % 5]] for k in (0, 1, 3)))
    seen: list[list[Tensor]] = [[], [], []]
    hooks = [
        m.register_forward_pre_hook(lambda _, inputs, s=s: s.append(inputs[0])) for m, s in zip(module.members, seen, strict=True)
    ]
    value = value_of(NOW, module, a_batch(X, Y))
    for h in hooks:
        h.remove()
    with seed.streams(0, [str(i) for i in range(8)], draw=0, purpose="fit"):
        partner = X[seed.integers(X, 8)]
    own = [moved(NOW, m, partner) for m in module.members]
    by_hand = torch.tensor(0.0)
    for i, member in enumerate(module.members):
        others = [own[j] for j in range(3) if j != i]
        assert torch.equal(seen[i][-1], torch.cat(others)), f"member {i} is shown something else"
        by_hand = by_hand + sum(nn.functional.cross_entropy(member(x), Y) for x in others)
    torch.testing.assert_close(value, by_hand)


def test_the_layer_is_drawn_per_epoch_among_all_but_the_last() -> None:
    with seed.forked(0, "weights"):
        member = SmallCNN(2, 4).build(DIGITS.shape, 10).eval()
    layers = layers_of(member)
    assert len(layers) == 6
    x = numbers(2, *DIGITS.shape)
    used: set[int] = set()
    spy = member.register_forward_pre_hook(lambda *_: used.update(k for k, m in enumerate(layers) if m._forward_hooks))
    for epoch in range(40):
        DVERGE(steps=1)._move(member, a_batch(x, Y[:2], epoch), x.flip(0))
    spy.remove()
    assert used == {0, 1, 2, 3, 4}
    one, other = (DVERGE()._move(member, a_batch(x, Y[:2], 3), x.flip(0)) for _ in range(2))
    assert torch.equal(one, other)


def test_it_warms_up_with_the_plain_loss() -> None:
    module = linear_members(numbers(3, 5), numbers(3, 5, key="b"))
    plain = [float(value_of(JointCrossEntropy(), module, a_batch(X, Y, epoch)).detach()) for epoch in (0, 2, 3)]
    value = [float(value_of(DVERGE(warm_up=3), module, a_batch(X, Y, epoch)).detach()) for epoch in (0, 2, 3)]
    assert value[:2] == plain[:2]
    assert value[2] != plain[2]


def test_members_without_layers_are_refused() -> None:
    module = Members([nn.Identity(), nn.Identity()], "logits")
    with pytest.raises(SpecError, match="DVERGE needs members with convolutions or linear layers, got Identity"):
        value_of(NOW, module, a_batch(X, Y))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_moving_leaves_the_members_as_they_were(mode: Any) -> None:
    data = Toy()
    split = data.split("target")
    with seed.forked(0, "weights"):
        module = Committee((Small(0.2), Small(0.2))).build(data.shape, 3).train()
    before, kept = weights(module), []
    first = module.members[0].register_forward_pre_hook(  # type: ignore[index,union-attr,operator]
        lambda m, _: kept.append((m.training, all(p.requires_grad for p in m.parameters()), weights(module)))
    )
    value_of(DVERGE(warm_up=0, inner_mode=mode), module, a_batch(split.x[:8], split.y[:8]))
    first.remove()
    training, learns, last = kept[-1]
    assert training
    assert learns
    assert same(before, last), "weights or buffers changed before the weight step"
    assert [k[0] for k in kept[:-1]] == [mode == "train"] * 11
    assert not any(k[1] for k in kept[:-1])
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    "members",
    [pytest.param(MLPS[:2], marks=pytest.mark.slow), MLPS, pytest.param(MIXED, marks=pytest.mark.slow)],
    ids=["two", "three", "mixed"],
)
def test_what_fools_one_member_fools_fewer_others(members: tuple[MLP, ...]) -> None:
    plain, diverse = trained(JointCrossEntropy(), members), trained(STRONG, members)
    before, after = transfer(plain), transfer(diverse)
    assert after < before - 0.1, (before, after)
    assert accuracy(diverse) > accuracy(plain) - 0.05, (accuracy(diverse), accuracy(plain))
    assert weakest(diverse) > weakest(plain) - 0.1, (weakest(diverse), weakest(plain))
