"""The control: members trained in one run are the members trained alone, bit for bit."""

from __future__ import annotations

import torch
from committee_fakes import a_batch, numbers, value_of
from defence_fakes import DictStore, Toy, same, weights

from firedoor import seed
from firedoor.architectures import MLP, Committee, SmallCNN
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.joint import JointCrossEntropy
from firedoor.losses import cross_entropy

DATA = Toy()
FIT = {"epochs": 3, "batch_size": 16, "lr": 0.05, "augment": "shift"}


def test_each_member_learns_what_it_would_have_learned_alone() -> None:
    with seed.forked(0, "weights"):
        together = Committee((SmallCNN(4, 8), MLP(8))).build(DATA.shape, 3)
    with seed.forked(0, "weights"):
        alone = [a.build(DATA.shape, 3) for a in (SmallCNN(4, 8), MLP(8))]
    split = DATA.split("target")
    Fit(loss=JointCrossEntropy(), **FIT).train(together, split, DictStore(), 0)  # type: ignore[arg-type]
    for member, single in zip(together.members, alone, strict=True):  # type: ignore[arg-type]
        before = weights(single)
        Fit(loss=CrossEntropy(), **FIT).train(single, split, DictStore(), 0)  # type: ignore[arg-type]
        assert not same(before, weights(single))
        assert same(weights(member), weights(single))


def test_it_is_the_sum_of_the_members_losses_and_not_that_of_the_mean() -> None:
    with seed.forked(0, "weights"):
        module = Committee((MLP(8), MLP(8))).build((6,), 3)
    x, y = numbers(9, 6), torch.arange(9) % 3
    value = value_of(JointCrossEntropy(), module, a_batch(x, y))
    torch.testing.assert_close(value, sum(torch.nn.functional.cross_entropy(m(x), y) for m in module.members))  # type: ignore[union-attr]
    assert abs(float((value - 2 * cross_entropy(module(x), y).mean()).detach())) > 1e-4
