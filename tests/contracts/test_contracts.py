"""The attack contract, called on the catalogue: a few clauses per entry here, all 24 on all of them in the slow lane."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from firedoor import catalogue, seed
from firedoor.contracts import attack, entries, manners, victims
from firedoor.contracts.attack import CLAUSES, ORDER, judge
from firedoor.contracts.check import not_judged
from firedoor.contracts.counting import counted
from firedoor.contracts.subject import Subject, Verdict
from firedoor.protocols import Access, Attack, Classifier, Semantics
from firedoor.threat import Threat

SUBJECTS = entries.subjects()
GROUPS = ((1, 7, 10, 23), (2, 11, 16, 19), (3, 9, 13, 21), (4, 12, 15, 20), (5, 14, 18), (6, 8, 17))  # the long clauses apart
LANE = [(s, GROUPS[i % len(GROUPS)]) for i, s in enumerate(SUBJECTS)]


def shown(verdicts: tuple[Verdict, ...]) -> str:
    return "".join(f"\n{v.entry}, clause {v.clause} ({CLAUSES[v.clause].title}): {v.text}" for v in verdicts if v.outcome == "fail")


@pytest.mark.parametrize(("subject", "clauses"), LANE, ids=lambda v: v.name if isinstance(v, Subject) else "")
def test_an_entry_keeps_some_clauses(subject: Subject, clauses: tuple[int, ...]) -> None:
    """Each clause meets every kind of entry, each entry three or four clauses; which ones moves on with the catalogue."""
    verdicts = judge(subject.maker, subject.name, subject.family, clauses)
    assert not shown(verdicts), shown(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_an_entry_keeps_all_clauses(subject: Subject) -> None:
    verdicts = judge(subject.maker, subject.name, subject.family)
    assert not shown(verdicts), shown(verdicts)
    assert not not_judged(verdicts), "nothing that an attack declares excuses it from these"
    unreasoned = [v for v in verdicts if v.outcome == "skip" and len(v.text) < 15]
    assert not unreasoned, unreasoned


def test_every_entry_of_the_catalogue_is_judged_by_all_24_clauses() -> None:
    assert sorted(CLAUSES) == sorted(ORDER) == list(range(1, 25))
    assert sorted(itertools.chain(*GROUPS)) == sorted(set(ORDER) - {22, 24})
    names = {s.name for s in SUBJECTS}
    for kind in ("attacks", "parts", "objectives", "estimators"):
        for e in catalogue.entries(kind):
            if e.module.startswith("firedoor.attacks."):
                assert (e.name if kind == "attacks" else f"{kind.removesuffix('s')} {e.name}") in names
    one = judge(SUBJECTS[0].maker, "one", clauses=(10, 4))
    assert [(v.clause, v.entry, v.outcome) for v in one] == [(10, "one", "pass"), (4, "one", "pass")]


@pytest.mark.parametrize("name", ["FGSM", "SignNoise", "SPSA"])
def test_threads_and_memory(name: str) -> None:
    """The two clauses that the clock, and all objects of the process, take part in: once per kind of access."""
    subject = entries.subject("attacks", name)
    verdicts = judge(subject.maker, name, subject.family, (22, 24))
    assert not shown(verdicts), shown(verdicts)


# ---------------------------------------------------------------- the do-nothing rule


@dataclass(frozen=True)
class Nothing:
    """Returns a copy of x, and declares what a real attack declares."""

    threat: Threat

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    gradients: ClassVar[int] = 1
    queries: ClassVar[int] = 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return x.clone()


@dataclass(frozen=True)
class Noise(Nothing):
    """Sign noise that declares what a real attack declares."""

    semantics: ClassVar[Semantics] = Semantics(stochastic=True)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        if len(x) == 0:
            return x.clone()
        with seed.own_streams(x, "Noise"):
            return self.threat.project(x + self.threat.eps * self.threat.steepest(seed.normal(x)), x)


@pytest.mark.parametrize("impostor", [Nothing, Noise])
@pytest.mark.parametrize("family", ["gradient", "input transformation"])
def test_doing_nothing_and_noise_break_every_clause_about_strength(impostor: type[Nothing], family: str) -> None:
    def make(threat: Threat, shape: tuple[int, ...], classes: int, changes: Mapping[str, object]) -> Attack:
        return impostor(threat)

    broken = {v.clause for v in judge(make, "impostor", family, (15, 21, 23)) if v.outcome == "fail"}
    assert broken == {15, 21, 23}


# ---------------------------------------------------------------- the fixtures are what they say


def test_linear_fixtures_have_the_margins_and_distances_that_clauses_rely_on() -> None:
    for w in (victims.normals(*victims.SHAPE, key=2), victims.gentle()):
        x, y = victims.at_margin(w, 8, 3.0)
        shallow, deep = victims.centred(w, deep=False), victims.centred(w, classes=3)
        logits = deep(x).detach()
        assert torch.allclose(shallow(x), logits[:, :2], atol=1e-9)
        assert (logits.argmax(1) == y).all()
        gaps = logits[:, 1] - logits[:, 0]
        assert torch.allclose(gaps, 3.0 * (2.0 * y.double() - 1), atol=1e-9)
        moved = x - 0.05 * (2.0 * y.double() - 1).view(-1, 1, 1, 1) * w.sign()
        after = deep(moved).detach()
        assert torch.allclose((after[:, 1] - after[:, 0] - gaps).abs(), 0.05 * w.abs().sum().expand(8), atol=1e-9)
        assert x.min() > 0.15
        assert x.max() < 0.85


def test_veils_hide_what_they_must() -> None:
    x = victims.images(4).requires_grad_()
    net = victims.CNN()
    scores, labels = victims.Veiled(net, Access.SCORES)(x), victims.Veiled(net, Access.LABELS)(x)
    assert not scores.requires_grad
    assert torch.equal(scores, net(x))
    assert (labels.sum(1) == 1).all()
    assert torch.equal(labels.argmax(1), net(x).argmax(1))


@pytest.mark.parametrize("kind", ["zero", "nan", "inf", "none"])
def test_a_dead_network_gives_right_logits_and_no_usable_gradient_and_recovers(kind: str) -> None:
    net, x = victims.centred(victims.gentle()), victims.images(3).requires_grad_()
    dead = victims.Dead(net, kind, 1)
    logits = dead(x)
    assert torch.equal(logits, net(x))
    if logits.requires_grad and kind != "none":
        (g,) = torch.autograd.grad(logits[:, 1].sum(), x, allow_unused=True)
        assert not (torch.isfinite(g) & (g != 0)).any(), kind
    (g,) = torch.autograd.grad(dead(x)[:, 1].sum(), x)
    assert torch.allclose(g, victims.gentle().expand_as(g) / 2)


def test_passes_are_counted_by_the_gradients_that_are_taken_not_by_the_calls() -> None:
    net, x = victims.Pair(victims.CNN(), victims.CNN(key=8)), victims.images(5).requires_grad_()
    with counted(net) as counter:
        torch.autograd.grad(net(x).sum(), x)
        net(x.detach())
        net.members[0](x.detach())
        loss = net.members[1](x).sum()
        torch.autograd.grad(loss, x, retain_graph=True)
        torch.autograd.grad(loss, x)
    assert counter.backward == 5 + 2 * 2.5
    assert counter.plain == 5 + 2.5
    assert counter.calls[0][0] == 5
    assert not net.members[0]._forward_pre_hooks


def test_the_snapshot_sees_each_thing_that_can_be_left_behind() -> None:
    net = manners.lived_in(victims.CNN())
    before = manners.snapshot(net)
    assert manners.changed(before, manners.snapshot(net)) == []
    changes = {
        "training of drop": lambda: net.drop.eval(),
        "buffer norm.running_mean": lambda: net.norm.running_mean.add_(1),
        "parameter last.bias": lambda: net.last.bias.data.add_(1),
        "requires_grad of first.bias": lambda: net.first.bias.requires_grad_(True),
        ".grad of last.weight": lambda: setattr(net.last.weight, "grad", None),
        ".grad of last.bias": lambda: setattr(net.last.bias, "grad", torch.zeros_like(net.last.bias)),
        "number of hooks of the network": lambda: net.register_forward_pre_hook(lambda *_: None),
        "forward of act": lambda: setattr(net.act, "forward", lambda x: x),
        "torch's global random state": lambda: torch.rand(1),
    }
    for name, change in changes.items():
        before = manners.snapshot(net)
        change()
        assert name in manners.changed(before, manners.snapshot(net)), name


def test_what_a_stranger_does_to_the_process_ends_with_the_clause() -> None:
    @dataclass(frozen=True)
    class Rude(Nothing):
        def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            return x.clone()

    state = torch.random.get_rng_state()
    judge(lambda threat, shape, classes, changes: Rude(threat), "rude", clauses=(10, 11))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert attack.first_broken(()) is None
