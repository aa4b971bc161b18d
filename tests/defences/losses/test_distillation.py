"""Distillation of an ensemble into one network: Distillation with an Ensemble as its teacher, and nothing else, does it."""

from __future__ import annotations

import torch
from committee_fakes import DIGITS, a_batch, held_out, numbers, value_of
from defence_fakes import DictStore
from digit_fakes import NET, Live, fitted, linear, plain

from firedoor import seed
from firedoor.defences.fit import Fit
from firedoor.defences.losses.distillation import Distillation
from firedoor.models.ensemble import Ensemble

X, Y = numbers(6, 4), torch.arange(6) % 3
MEMBERS = [6 * numbers(3, 4, key=key) - 3 for key in ("a", "b", "c")]


def test_the_soft_labels_are_the_mean_of_the_members_probabilities() -> None:
    teacher = Ensemble(tuple(Live(linear(w)) for w in MEMBERS))
    student = linear(numbers(3, 4, key="student"))
    value = value_of(Distillation(teacher), student, a_batch(X, Y))
    soft = torch.stack([(X @ w.T).softmax(1) for w in MEMBERS]).mean(0)
    wanted = -(soft * student(X).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(value, wanted)
    of_logits = torch.stack([X @ w.T for w in MEMBERS]).mean(0).softmax(1)
    assert float((soft - of_logits).abs().max()) > 0.05, "the mean of the logits would be another teacher"


def test_one_network_for_the_price_of_one_answers_like_the_ensemble() -> None:
    members = []
    for key in range(3):
        with seed.forked(key + 1, "weights"):
            module = NET.build(DIGITS.shape, 10)
        Fit(epochs=6, batch_size=40, optimiser="adamw", lr=0.005).train(module, DIGITS.split("target")[:600], DictStore(), key)
        members.append(Live(module))
    ensemble = Ensemble(tuple(members))
    student, training = fitted(Distillation(ensemble))
    assert training.passes == 1, "the members are no part of what the student costs at each example"
    taught = ensemble.load(DictStore())(held_out().x).log_softmax(1)
    away = [float((taught.exp() * (taught - m(held_out().x).log_softmax(1))).sum(1).mean()) for m in (student, plain())]
    assert away[0] < 0.7 * away[1], away
