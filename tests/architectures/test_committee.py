"""A committee is several networks, built one after the other, with one answer."""

from __future__ import annotations

import math

import pytest
import torch

from firedoor import seed, spec
from firedoor.architectures import MLP, Committee, InnerNoise, SmallCNN
from firedoor.errors import SpecError
from firedoor.members import Members
from firedoor.models import ensemble

SHAPE = (1, 8, 8)


def built(recipe: Committee, key: int = 0) -> Members:
    with seed.forked(key, "weights"):
        module = recipe.build(SHAPE, 4)
    assert isinstance(module, Members)
    return module.eval()


def test_members_of_one_architecture_begin_apart_and_the_same_each_time() -> None:
    one, again, other = (built(Committee((SmallCNN(4, 8),) * 3), key).state_dict() for key in (0, 0, 1))
    assert all(torch.equal(one[k], again[k]) for k in one), "the same seed, other weights"
    weight = "members.{}.1.weight"
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(one[weight.format(i)], one[weight.format(j)]), f"members {i} and {j} begin alike"
    assert not torch.equal(one[weight.format(0)], other[weight.format(0)]), "another seed, the same weights"


def test_the_first_member_is_the_network_that_would_be_built_alone() -> None:
    with seed.forked(0, "weights"):
        alone = MLP(8).build(SHAPE, 4).state_dict()
    first = built(Committee((MLP(8), SmallCNN(4, 8)))).members[0].state_dict()
    assert all(torch.equal(first[k], alone[k]) for k in alone)


def test_the_answer_is_the_mean_probability_or_the_mean_logit() -> None:
    x = torch.linspace(0, 1, 3 * 64).view(3, *SHAPE)
    for combine in ("probabilities", "logits"):
        module = built(Committee((MLP(8), SmallCNN(4, 8), MLP(4)), combine))  # type: ignore[arg-type]
        z = [m(x) for m in module.members]
        mean = sum(z) / 3 if combine == "logits" else (sum(i.softmax(1) for i in z) / 3).log()
        torch.testing.assert_close(module(x), mean)
    alone = built(Committee((MLP(8),)))
    torch.testing.assert_close(alone(x), alone.members[0](x).log_softmax(1))


def test_a_committee_is_random_if_a_member_is() -> None:
    assert not Committee((MLP(), SmallCNN())).stochastic
    assert Committee((MLP(), InnerNoise(SmallCNN()))).stochastic


def test_a_committee_can_be_written_in_a_study_file() -> None:
    table = {"members": [{"type": "MLP", "width": 8}, "SmallCNN"], "combine": "logits"}
    recipe = spec.build(Committee, table, "architecture", {}, {})
    assert recipe == Committee((MLP(8), SmallCNN()), "logits")
    assert spec.build(Committee, spec.to_dict(recipe), "architecture", {}, {}) == recipe
    assert spec.fingerprint(recipe) != spec.fingerprint(Committee((SmallCNN(), MLP(8)), "logits"))


def test_bad_fields_say_needed_got_do() -> None:
    with pytest.raises(SpecError, match="Committee needs at least one member, got none"):
        Committee(())
    with pytest.raises(SpecError, match="combine must be 'logits' or 'probabilities', got 'vote'"):
        Committee((MLP(),), "vote")  # type: ignore[arg-type]


def test_members_of_a_trained_and_of_a_joint_ensemble_are_one_class() -> None:
    assert ensemble.Members is Members
    one = Members([torch.nn.Identity()], "probabilities")(torch.tensor([[0.0, math.log(3)]]))
    torch.testing.assert_close(one.exp(), torch.tensor([[0.25, 0.75]]))
