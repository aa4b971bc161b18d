"""ADP: its two terms by hand, and what they do to members on digits."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import MIXED, MLPS, a_batch, accuracy, held_out, linear_members, trained, value_of, weakest

from firedoor.architectures import MLP
from firedoor.defences.losses.adp import ADP, mean_entropy, non_label_diversity
from firedoor.defences.losses.joint import JointCrossEntropy

P = torch.tensor([[[0.5, 0.3, 0.2]], [[0.6, 0.1, 0.3]]])  # two members, one example, three classes


def test_the_loss_by_hand() -> None:
    module = linear_members(P[0].log().T, P[1].log().T)  # shown 1, they answer P
    value = value_of(ADP(alpha=2, beta=0.5), module, a_batch(torch.ones(1, 1), torch.tensor([0])))
    entropy = -sum(p * math.log(p) for p in (0.55, 0.2, 0.25))
    cosine = (0.3 * 0.1 + 0.2 * 0.3) / math.sqrt((0.3**2 + 0.2**2) * (0.1**2 + 0.3**2))
    log_det = math.log((1 + 1e-6) ** 2 - cosine**2)
    assert float(value.detach()) == pytest.approx(-math.log(0.5) - math.log(0.6) - 2 * entropy - 0.5 * log_det, rel=1e-5)


def test_diversity_is_0_for_orthogonal_members_and_the_ridge_for_equal_ones() -> None:
    apart = torch.tensor([[[9.0, 60.0, -60.0]], [[9.0, -60.0, 60.0]]])
    y = torch.tensor([0])
    assert float(non_label_diversity(apart, y)) == pytest.approx(0, abs=1e-4)
    alike = torch.stack([P[0].log(), P[0].log()])
    assert float(non_label_diversity(alike, y)) == pytest.approx(math.log((1 + 1e-6) ** 2 - 1), rel=1e-4), "not float32 noise"
    many = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(float(non_label_diversity(many, y))), "five members, two other classes"


def test_diversity_keeps_a_gradient_where_the_label_takes_all() -> None:
    z = torch.tensor([[[200.0, 1.0, 0.0]], [[200.0, 0.5, 0.0]]], requires_grad=True)
    value = non_label_diversity(z, torch.tensor([0]))
    value.sum().backward()  # type: ignore[no-untyped-call]
    same_direction = non_label_diversity(z.detach() - torch.tensor([200.0, 0, 0]), torch.tensor([0]))
    torch.testing.assert_close(value.detach(), same_direction)
    assert z.grad is not None
    assert float(z.grad[..., 1:].abs().min()) > 0.1
    assert bool(torch.isfinite(z.grad).all())


def test_the_entropy_of_members_that_contradict_each_other_is_log_2() -> None:
    z = torch.tensor([[[100.0, 0.0]], [[0.0, 100.0]]])
    assert float(mean_entropy(z)) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "members",
    [pytest.param(MLPS[:2], marks=pytest.mark.slow), MLPS, pytest.param(MIXED, marks=pytest.mark.slow)],
    ids=["two", "three", "mixed"],
)
def test_it_raises_the_diversity_it_promotes(members: tuple[MLP, ...]) -> None:
    plain, diverse = trained(JointCrossEntropy(), members), trained(ADP(), members)
    x, y = held_out().x, held_out().y
    with torch.no_grad():
        z = {name: torch.stack([m(x) for m in module.members]) for name, module in (("plain", plain), ("ADP", diverse))}
    log_det = {k: float(non_label_diversity(v, y).mean()) for k, v in z.items()}
    entropy = {k: float(mean_entropy(v).mean()) for k, v in z.items()}
    assert log_det["ADP"] > log_det["plain"] + 1, log_det
    assert entropy["ADP"] > entropy["plain"] + 0.5, entropy
    assert accuracy(diverse) > accuracy(plain) - 0.1, (accuracy(diverse), accuracy(plain))
    assert weakest(diverse) > weakest(plain) - 0.1, (weakest(diverse), weakest(plain))
