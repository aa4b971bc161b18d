"""What joint losses share, and what they promise together: reductions, any number of members, any mix of architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import DIGITS, a_batch, numbers, value_of
from defence_fakes import DictStore, Small, Toy, net, same, weights
from torch import Tensor, nn

from firedoor import seed, spec
from firedoor.architectures import MLP, Committee, SmallCNN
from firedoor.defences.fit import Fit
from firedoor.defences.losses.adp import ADP
from firedoor.defences.losses.committee_terms import input_gradients, members_of, pairwise_cosines
from firedoor.defences.losses.dverge import DVERGE
from firedoor.defences.losses.gal import GAL
from firedoor.defences.losses.joint import JointCrossEntropy
from firedoor.defences.losses.lotos import LOTOS
from firedoor.defences.losses.trs import TRS
from firedoor.errors import SpecError
from firedoor.models.trained import Trained

DATA = Toy()
SPLIT = DATA.split("target")
SMALL = SmallCNN(4, 8)
JOINT: list[Any] = [JointCrossEntropy(), ADP(), GAL(), TRS(la=1, lb=0.1, steps=2), DVERGE(steps=2, warm_up=0), LOTOS(mal=0.1)]
OFF: dict[str, Any] = {
    "ADP(0, 0)": ADP(0, 0),
    "GAL(0)": GAL(0),
    "TRS(0, 0)": TRS(0, 0),
    "LOTOS(0)": LOTOS(0),
    "DVERGE that only warms up": DVERGE(warm_up=99),
}


def committee(members: tuple[Any, ...]) -> nn.Module:
    with seed.forked(0, "weights"):
        return Committee(members).build(DATA.shape, 3)


def fitted(loss: Any, members: tuple[Any, ...] = (SMALL, MLP(8))) -> dict[str, Tensor]:
    module = committee(members)
    Fit(loss=loss, epochs=2, batch_size=16, lr=0.02, augment="shift").train(module, SPLIT, DictStore(), 0)
    return weights(module)


@pytest.mark.parametrize("name", OFF)
def test_without_its_term_a_joint_loss_is_the_plain_committee(name: str) -> None:
    assert same(fitted(OFF[name]), fitted(JointCrossEntropy())), name


@pytest.mark.parametrize("loss", JOINT[1:], ids=repr)
def test_with_its_term_it_is_not(loss: Any) -> None:
    assert not same(fitted(loss), fitted(JointCrossEntropy()))


@pytest.mark.parametrize("loss", [GAL(), DVERGE(warm_up=0), LOTOS(), TRS(lb=0)], ids=repr)
def test_one_member_has_no_pair_and_is_trained_plainly(loss: Any) -> None:
    assert same(fitted(loss, (SMALL,)), fitted(JointCrossEntropy(), (SMALL,)))


@pytest.mark.parametrize("members", [(SMALL,), (SMALL, SMALL), (SMALL, MLP(8)), (Small(), Small(), MLP(8))], ids=len)
@pytest.mark.parametrize("loss", JOINT, ids=repr)
def test_every_member_of_any_committee_learns(loss: Any, members: tuple[Any, ...]) -> None:
    module = committee(members).train()
    value = value_of(loss, module, a_batch(SPLIT.x[:12], SPLIT.y[:12]))
    value.backward()  # type: ignore[no-untyped-call]
    for name, p in module.named_parameters():
        if isinstance(loss, DVERGE | LOTOS | GAL | TRS) and p.grad is None:
            pytest.fail(f"no gradient reaches {name}")
        assert p.grad is not None
        assert bool(torch.isfinite(p.grad).all()), name
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()), "a hook was left behind"


@pytest.mark.parametrize("loss", JOINT, ids=repr)
def test_a_single_network_is_refused(loss: Any) -> None:
    batch = a_batch(SPLIT.x[:4], SPLIT.y[:4])
    with pytest.raises(SpecError, match=rf"{type(loss).__name__} .* needs a module with `.members`, got Net.* Committee"):
        value_of(loss, net(DATA), batch)


def test_members_are_those_of_a_module_list() -> None:
    module = committee((SMALL, SMALL))
    assert members_of(module, "it") == list(module.members)  # type: ignore[arg-type]
    module.members = nn.ModuleList()
    with pytest.raises(SpecError, match="it trains several networks"):
        members_of(module, "it")


def test_cosines_by_hand_for_any_length_of_gradient() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 2.0], [-3.0, -4.0], [1.0, 0.0], [1.0, 0.0]])
    c = torch.tensor([[5.0, 0.0], [4.0, 3.0], [0.0, 1.0], [1.0, 0.0]])
    half = 0.5**0.5
    wanted = torch.tensor([[0, -1, half, 0], [1, 0.96, half, 0], [0, -0.96, 0, 1]])
    for scale in (1.0, 1e-19, 1e20):  # squares of the second lose their digits in float32, of the third they do not fit
        torch.testing.assert_close(pairwise_cosines([a * scale, b, c * scale]), wanted, msg=f"at scale {scale}")


def test_a_dead_gradient_gives_no_nan_to_the_weights() -> None:
    a, b = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    pairwise_cosines([a, b]).sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert b.grad is not None
    assert bool(torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all())


def test_input_gradients_are_per_example() -> None:
    """Of a linear model: W^T (p - onehot), whatever else is in the batch."""
    x, y = numbers(5, 4).requires_grad_(), torch.tensor([0, 1, 2, 0, 1])
    layer = nn.Linear(4, 3)
    (g,) = input_gradients([nn.functional.cross_entropy(layer(x), y, reduction="none")], x)
    p = layer(x).softmax(1) - nn.functional.one_hot(y, 3)
    torch.testing.assert_close(g, p @ layer.weight)


def test_a_joint_ensemble_is_a_trained_committee_in_a_study_file() -> None:
    table = {
        "architecture": {"type": "Committee", "members": ["MLP", "MLP"]},
        "fit": {"loss": {"type": "GAL", "lam": "1/2"}, "epochs": 1},
    }
    model = spec.build(Trained, table, "target", {"data": DIGITS}, {})
    assert model == Trained(Committee((MLP(), MLP())), DIGITS, Fit(loss=GAL(0.5), epochs=1))
    assert model.relax() == model


BAD = [
    (ADP, {"alpha": -1.0}),
    (ADP, {"beta": float("nan")}),
    (GAL, {"lam": -0.1}),
    (TRS, {"la": -1.0}),
    (TRS, {"eps_end": float("inf")}),
    (TRS, {"rise": 0}),
    (TRS, {"inner_mode": "test"}),
    (DVERGE, {"eps": -0.1}),
    (DVERGE, {"step_size": 0.0}),
    (DVERGE, {"warm_up": -1}),
    (DVERGE, {"inner_mode": "test"}),
    (LOTOS, {"mal": -1.0}),
    (LOTOS, {"iterations": 0}),
]


@pytest.mark.parametrize(("loss", "fields"), BAD, ids=[f"{c.__name__} {f}" for c, f in BAD])
def test_wrong_fields_are_refused(loss: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=rf"{loss.__name__}: .* must be .*, got .*\. (Try|Choose)"):
        loss(**fields)
