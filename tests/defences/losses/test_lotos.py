"""LOTOS: gains against singular value decompositions, which layers are compared, and what training does to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import DIGITS, MIXED, MLPS, a_batch, accuracy, linear_members, numbers, trained, value_of, weakest
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import MLP, Committee, SmallCNN, ViT
from firedoor.defences.losses.joint import JointCrossEntropy
from firedoor.defences.losses.lotos import LOTOS, _input_shapes, cross_gains
from firedoor.errors import SpecError
from firedoor.members import Members

MAL = 0.8


def matrix(key: str, rows: int = 4, columns: int = 6) -> Tensor:
    return numbers(rows, columns, key=key) - 0.3


def top(a: Tensor) -> Tensor:
    return torch.linalg.svd(a)[2][0]


def gains(module: Members, x: Tensor, iterations: int = 10) -> Tensor:
    with _input_shapes(list(module.members)) as shapes, torch.no_grad():
        module(x)
    return cross_gains(list(module.members), shapes, iterations).detach()


def test_the_loss_by_hand_on_linear_members() -> None:
    a, b, c = matrix("a"), matrix("b"), matrix("c", rows=4)
    module = linear_members(a, b, c)
    batch = a_batch(numbers(5, 6), torch.tensor([0, 1, 2, 3, 0]))
    pairs = [(a, b), (a, c), (b, a), (b, c), (c, a), (c, b)]
    wanted = torch.stack([torch.linalg.vector_norm(i @ top(j)) for i, j in pairs])
    torch.testing.assert_close(gains(module, batch.x, 200), wanted, rtol=1e-4, atol=1e-5)
    mal = float(wanted.median())
    term = 0.3 / 2 * (wanted - mal).clamp_min(0).sum()  # M lam / (M (M - 1))
    value = value_of(LOTOS(0.3, mal, 200), module, batch) - value_of(JointCrossEntropy(), module, batch)
    torch.testing.assert_close(value, term, rtol=1e-3, atol=1e-5)
    assert float(term) > 0


def test_only_the_layer_that_amplifies_is_told_to_change() -> None:
    """v_j is taken as constant: the gradient by A_i is A_i v v^T / |A_i v|, and nothing reaches A_j through v."""
    a, b = matrix("a"), matrix("b")
    module = linear_members(a, b)
    shapes: Any = dict.fromkeys(module.members, (6,))
    cross_gains(list(module.members), shapes, 200)[0].backward()  # type: ignore[no-untyped-call]
    first, second = module.members
    v = top(b)
    torch.testing.assert_close(first.weight.grad, torch.outer(a @ v, v) / (a @ v).norm(), rtol=1e-3, atol=1e-4)
    assert not second.weight.grad.any()


@pytest.mark.parametrize("fields", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": "same", "padding_mode": "circular"}])
def test_a_convolution_is_the_matrix_that_it_is(fields: dict[str, Any]) -> None:
    with seed.forked(0, "weights"):
        convolutions = [nn.Conv2d(2, 3, 3, **fields) for _ in range(2)]
    basis = torch.eye(2 * 5 * 5).view(-1, 2, 5, 5)
    with torch.no_grad():
        dense = [(c(basis) - c(torch.zeros(1, 2, 5, 5))).flatten(1).T for c in convolutions]
    shapes: Any = dict.fromkeys(convolutions, (2, 5, 5))
    found = cross_gains([nn.Sequential(c) for c in convolutions], shapes, 2000)
    wanted = torch.stack([torch.linalg.vector_norm(dense[0] @ top(dense[1])), torch.linalg.vector_norm(dense[1] @ top(dense[0]))])
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-3, atol=1e-4)


def test_few_iterations_come_close() -> None:
    with seed.forked(0, "weights"):
        module = Committee((SmallCNN(4, 16),) * 2).build(DIGITS.shape, 10)
    assert isinstance(module, Members)
    x = numbers(2, *DIGITS.shape)
    few, many = gains(module, x), gains(module, x, 500)
    assert float((few / many - 1).abs().median()) < 0.1


def count(members: tuple[Any, ...]) -> int:
    with seed.forked(0, "weights"):
        module = Committee(members).build(DIGITS.shape, 10)
    assert isinstance(module, Members)
    return len(gains(module, numbers(2, *DIGITS.shape)))


def test_which_places_two_members_share() -> None:
    cnn, mlp = SmallCNN(4, 16), MLP(32, 2)
    assert count((mlp,) * 2) == 2 * 3
    assert count((cnn,) * 3) == 6 * 6
    assert count((mlp, cnn)) == 2, "the first layer, which sees the 64 pixels"
    assert count((mlp, MLP(32, 1))) == 2 * 2, "the first and the one after it; the longer member's last has no partner"
    assert count((ViT(), ViT())) >= 2


def test_members_that_share_no_place_are_refused() -> None:
    module = Members([nn.Linear(6, 3), nn.Sequential(nn.ZeroPad1d((0, 1)), nn.Linear(7, 3))], "logits")
    with pytest.raises(SpecError, match="members 0 and 1 share none"):
        value_of(LOTOS(), module, a_batch(numbers(2, 6), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    "members",
    [pytest.param(MLPS[:2], marks=pytest.mark.slow), MLPS, pytest.param(MIXED, marks=pytest.mark.slow)],
    ids=["two", "three", "mixed"],
)
def test_it_lowers_the_gains_beyond_mal(members: tuple[MLP, ...]) -> None:
    plain, apart = trained(JointCrossEntropy(), members), trained(LOTOS(0.2, MAL), members)
    excess = [float((gains(m, numbers(2, *DIGITS.shape), 200) - MAL).relu().sum()) for m in (plain, apart)]
    assert excess[0] > 0.1, "nothing to lower"
    assert excess[1] < 0.25 * excess[0], excess
    assert accuracy(apart) > accuracy(plain) - 0.05, (accuracy(apart), accuracy(plain))
    assert weakest(apart) > weakest(plain) - 0.1, (weakest(apart), weakest(plain))
