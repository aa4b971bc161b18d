"""RSLAD: its formula on linear models, and a student of a robust teacher on digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from committee_fakes import a_batch, numbers, value_of
from defence_fakes import Ascent, Fixed
from digit_fakes import EPS, ON_CNN, Live, accuracy, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import Tensor, nn

from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.rslad import RSLAD
from firedoor.errors import SpecError
from firedoor.threat import Linf

X, Y = 0.3 + 0.4 * numbers(6, 4), torch.arange(6) % 2
W, TEACHER = 3 * numbers(2, 4, key="w") - 1.5, 3 * numbers(2, 4, key="teacher") - 1.5


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_loss_by_hand(alpha: float) -> None:
    """Two classes: the divergence from the teacher is convex in the student's margin, so x' is at the end away from the teacher."""
    w = (W[1] - W[0]).double()
    margin, taught = X.double() @ w, X.double() @ (TEACHER[1] - TEACHER[0]).double()
    at_worst = margin + 0.1 * (margin - taught).sign() * w.abs().sum()
    te, clean, attacked = (1 / (1 + (-m).exp()) for m in (taught, margin, at_worst))
    by_hand = (alpha * divergence(te, attacked) + (1 - alpha) * divergence(te, clean)).mean()
    value = value_of(RSLAD(Live(linear(TEACHER)), Linf(0.1), alpha=alpha), linear(W), a_batch(X, Y))
    assert float((margin - taught).abs().min()) > 0.01, "the noise of the start must not choose the end"
    assert float(value.detach()) == pytest.approx(float(by_hand), rel=1e-4)


def test_labels_play_no_part() -> None:
    one, other = (value_of(RSLAD(Live(linear(TEACHER)), Linf(0.1)), linear(W), a_batch(X, y)) for y in (Y, 1 - Y))
    assert torch.equal(one, other)


def test_the_teacher_learns_nothing() -> None:
    teacher, student = linear(TEACHER), linear(W)
    value_of(RSLAD(Live(teacher), Linf(0.1)), student, a_batch(X, Y)).backward()  # type: ignore[no-untyped-call]
    assert teacher.weight.grad is None
    assert student.weight.grad is not None


def test_without_alpha_it_is_distillation() -> None:
    """The losses differ by the teacher's entropy, which has no gradient."""
    assert trained_alike(RSLAD(Live(plain()), Linf(EPS), alpha=0.0), Distillation(Live(plain())))
    assert not trained_alike(RSLAD(Live(plain()), Linf(EPS), steps=1), Distillation(Live(plain())))


def test_it_costs_steps_and_two_passes_and_terms_of_weight_0_nothing() -> None:
    for alpha, cost in ((5 / 6, 5), (1.0, 4), (0.0, 1)):
        assert passes(RSLAD(Live(plain()), Linf(EPS), steps=3, alpha=alpha)) == cost


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"steps": 0}, {"step_size": -1.0}, {"threat": Linf(0.1, targeted=True)}])
def test_wrong_fields_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"RSLAD: (the )?\w+ must be .*, got .*\. \w+"):
        RSLAD(**{"teacher": Fixed(), "threat": Linf(0.1), **wrong})


@lru_cache
def robust_teacher() -> nn.Module:
    return fitted(Madry(Ascent(Linf(EPS), steps=3, start=True, share=0.5)))[0]


@pytest.mark.parametrize("on_cnn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_a_student_becomes_robust(on_cnn: bool) -> None:
    module, _ = fitted(RSLAD(Live(robust_teacher()), Linf(EPS), steps=3), **(ON_CNN if on_cnn else {}))
    before, after = robust_accuracy(plain(on_cnn)), robust_accuracy(module)
    assert after > before + 0.25, (before, after)
    assert accuracy(module) > 0.85
