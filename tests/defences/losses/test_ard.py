"""ARD: its formula on linear models, and a student of a robust teacher on digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from committee_fakes import a_batch, numbers, value_of
from defence_fakes import Ascent, Fixed, Toy, net
from digit_fakes import EPS, ON_CNN, Live, accuracy, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import nn

from firedoor.defences.losses.ard import ARD
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.madry import Madry
from firedoor.errors import SpecError
from firedoor.threat import Linf

X, Y = 0.3 + 0.4 * numbers(6, 4), torch.arange(6) % 2
W, TEACHER = 3 * numbers(2, 4, key="w") - 1.5, 3 * numbers(2, 4, key="teacher") - 1.5


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_loss_by_hand(alpha: float) -> None:
    """A linear student of two classes, whose margin falls by eps |w|_1; the teacher sees x alone."""
    hot = 4.0
    module, w = linear(W), (W[1] - W[0]).double()
    margin = X.double() @ w
    at_worst = margin - 0.1 * (2 * Y - 1) * w.abs().sum()
    taught = X.double() @ (TEACHER[1] - TEACHER[0]).double()
    p, q = (1 / (1 + (-m / hot).exp()) for m in (taught, at_worst))
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    plainly = (1 + (-(2 * Y - 1) * margin).exp()).log()
    by_hand = (alpha * hot**2 * divergence + (1 - alpha) * plainly).mean()
    loss = ARD(Live(linear(TEACHER)), Linf(0.1), alpha=alpha, temperature=hot)
    value = value_of(loss, module, a_batch(X, Y))
    assert float(value.detach()) == pytest.approx(float(by_hand), rel=1e-5)


def test_the_teacher_learns_nothing_and_sees_the_clean_image() -> None:
    teacher, student, shown = linear(TEACHER), linear(W), []
    teacher.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    value_of(ARD(Live(teacher), Linf(0.1)), student, a_batch(X, Y)).backward()  # type: ignore[no-untyped-call]
    assert teacher.weight.grad is None
    assert student.weight.grad is not None
    assert all(torch.equal(x, X) for x in shown)
    assert len(shown) == 1


def test_without_alpha_it_is_plain_training() -> None:
    assert trained_alike(ARD(Live(plain()), Linf(EPS), alpha=0.0), CrossEntropy())
    assert not trained_alike(ARD(Live(plain()), Linf(EPS), steps=1, alpha=0.1), CrossEntropy())


def test_the_attack_begins_anywhere_in_the_ball() -> None:
    module, shown = linear(W), []
    module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach()))
    value_of(ARD(Live(linear(TEACHER)), Linf(0.1), steps=1), module, a_batch(X, Y))
    sizes = (shown[0] - X).abs()
    assert float(sizes.max()) <= 0.1 + 1e-6
    assert 0.03 < float(sizes.mean()) < 0.07, "uniform changes are half of eps on average"


@pytest.mark.parametrize(("mode", "training"), [("train", True), ("eval", False)])
def test_inner_mode_is_the_mode_of_the_student_under_attack(mode: Any, training: bool) -> None:
    data = Toy()
    split, modes = data.split("target")[:8], []
    module = net(data).train()
    module.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    value_of(ARD(Fixed(data), Linf(EPS), steps=3, inner_mode=mode), module, a_batch(split.x, split.y))
    assert modes == [training] * 3 + [True]


def test_it_costs_steps_and_one_pass_and_one_more_for_the_labels() -> None:
    assert passes(ARD(Live(plain()), Linf(EPS), steps=3)) == 4
    assert passes(ARD(Live(plain()), Linf(EPS), steps=3, alpha=0.5)) == 5


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 1.1}, {"temperature": 0.0}, {"temperature": float("nan")}, {"steps": 0}, {"threat": Linf(0.1, targeted=True)}],
)
def test_wrong_fields_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"ARD: (the )?\w+ must be .*, got .*\. \w+"):
        ARD(**{"teacher": Fixed(), "threat": Linf(0.1), **wrong})


@lru_cache
def robust_teacher() -> nn.Module:
    return fitted(Madry(Ascent(Linf(EPS), steps=3, start=True, share=0.5)))[0]


@pytest.mark.parametrize("on_cnn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_a_student_becomes_robust(on_cnn: bool) -> None:
    module, _ = fitted(ARD(Live(robust_teacher()), Linf(EPS), steps=3), **(ON_CNN if on_cnn else {}))
    before, after = robust_accuracy(plain(on_cnn)), robust_accuracy(module)
    assert after > before + 0.2, (before, after)
    assert accuracy(module) > 0.8
