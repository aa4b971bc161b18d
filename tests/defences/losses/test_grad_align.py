"""GradAlign: its formula, its second derivative, and one-step training that no longer learns to beat one step only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from committee_fakes import a_batch, held_out, numbers, value_of
from defence_fakes import Ascent, DictStore, Small, Toy
from digit_fakes import EPS, ON_CNN, check_gradient, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.defences.fit import Fit, Watching
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.grad_align import GradAlign
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Split
from firedoor.threat import Linf

FAST = Fast(Linf(0.1), guard=False)


def cosine(module: nn.Module, x: Tensor, other: Tensor, y: Tensor) -> Tensor:
    """Between the gradients at two points, per example."""
    units = []
    for point in (x, other):
        moving = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(module(moving), y).sum(), moving)
        units.append(g.flatten(1) / g.flatten(1).square().sum(1, keepdim=True).sqrt())
    return (units[0] * units[1]).sum(1)


def test_a_linear_model_is_aligned_already() -> None:
    """Two classes: the gradient has one direction everywhere."""
    batch = a_batch(numbers(6, 4), torch.arange(6) % 2)
    value, fast = (value_of(loss, linear(3 * numbers(2, 4, key="w")), batch) for loss in (GradAlign(FAST, 7.0), FAST))
    torch.testing.assert_close(value, fast)


def test_the_term_is_one_minus_the_cosine_at_a_random_point_of_the_ball() -> None:
    with seed.forked(0, "weights"):
        module = SmallCNN(2, 8).build((1, 8, 8), 3)
    x, y, points = numbers(6, 1, 8, 8), torch.arange(6) % 3, []
    hook = module.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].detach()))
    value = value_of(GradAlign(FAST, 2.0), module, a_batch(x, y))
    hook.remove()
    clean, random = points[-2:]
    assert torch.equal(clean, x)
    Linf(0.1).check(random, x)
    inside = (random - x).abs()[(x > 0.1) & (x < 0.9)]
    assert float(inside.mean()) == pytest.approx(0.05, abs=0.01)
    term = 1 - cosine(module, x, random, y).mean()
    assert float(term) > 0.01
    torch.testing.assert_close(value, value_of(FAST, module, a_batch(x, y)) + 2 * term)


def test_its_gradient_by_the_weights_is_right() -> None:
    """Without the attack of Fast, whose sign has no derivative."""
    with seed.forked(0, "weights"):
        module = SmallCNN(2, 4, "silu").build((1, 4, 4), 3).double()
    loss = GradAlign(replace(FAST, step=0.0), 3.0)
    check_gradient(loss, module, a_batch(numbers(3, 1, 4, 4).double(), torch.tensor([0, 1, 2])))


def test_without_lam_it_is_its_base_with_or_without_a_guard() -> None:
    for base in (FAST, replace(FAST, guard=True)):
        assert trained_alike(GradAlign(base, 0.0), base)
    assert trained_alike(GradAlign(FAST, 0.2), GradAlign(replace(FAST, guard=True), 0.2)), "a guard that sees nothing"
    assert not trained_alike(GradAlign(FAST, 0.2), FAST)


def test_the_guard_of_the_base_watches() -> None:
    split = Split(numbers(4, 4), torch.arange(4) % 2, tuple("abcd"))
    assert isinstance(GradAlign(replace(FAST, guard=True)).start(DictStore(), split), Watching)
    assert not isinstance(GradAlign(FAST).start(DictStore(), split), Watching)


def test_it_costs_two_more_passes_and_refuses_a_negative_lam() -> None:
    assert passes(GradAlign(FAST)) == passes(FAST) + 2 == 4
    for wrong in (-1.0, math.nan):
        with pytest.raises(SpecError, match="GradAlign: lam must be 0 or more and finite, got"):
            GradAlign(FAST, wrong)


def test_gradients_point_the_same_way_within_the_ball() -> None:
    base = Fast(Linf(2 * EPS), guard=False)
    x, y = held_out().x[:200], held_out().y[:200]
    with seed.streams(0, held_out().ids[:200]):
        random = base.threat.start(x)
    aligned, fast = (fitted(loss, clip_gradient=1.0)[0] for loss in (GradAlign(base, 0.2), base))
    cosines = [float(cosine(m, x, random, y).nanmean()) for m in (aligned, fast)]
    assert 1 - cosines[0] < 0.7 * (1 - cosines[1]), cosines
    assert robust_accuracy(aligned) > robust_accuracy(plain()) + 0.15


@pytest.mark.slow
def test_one_step_training_no_longer_overfits_to_one_step() -> None:
    """Where Fast without a guard learns to beat one step and falls to many."""
    data, threat, gaps = Toy(), Linf(64 / 255), []
    split = data.split("target")
    for loss in (Fast(threat, step=2.0, guard=False), GradAlign(Fast(threat, step=2.0, guard=False), 1.0)):
        with seed.forked(0, "weights"):
            module = Small().build(data.shape, 3)
        fit = Fit(loss=loss, epochs=60, batch_size=16, lr=0.003, optimiser="adamw", schedule="constant")
        fit.train(module, split, DictStore(), 0)
        shares = []
        for attack in (Ascent(threat), Ascent(threat, steps=50, start=True, share=0.1)):
            with seed.streams(0, split.ids):
                x_adv = attack(module, split.x, split.y)
            shares.append(float((module(x_adv).argmax(1) == split.y).float().mean()))
        gaps.append(shares[0] - shares[1])
    assert gaps[0] > 0.5, gaps
    assert gaps[1] < 0.3, gaps


@pytest.mark.slow
def test_a_network_with_convolutions_learns_by_it() -> None:
    base = Fast(Linf(EPS), guard=False)
    module, _ = fitted(GradAlign(base), **ON_CNN, clip_gradient=1.0)
    assert robust_accuracy(module) > robust_accuracy(plain(True)) + 0.2
