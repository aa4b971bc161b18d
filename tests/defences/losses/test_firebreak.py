"""Firebreak: its formula against torch's losses, what it falls back to, and where its examples begin and end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from defence_fakes import DEFAULT, Ascent, DictStore, Fixed, Shown, Toy, net, same, weights
from torch import Tensor, nn
from torch.nn import functional

from firedoor import seed
from firedoor.craft import Craft
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.firebreak import Firebreak
from firedoor.defences.losses.pubdef import PubDef
from firedoor.errors import SpecError
from firedoor.protocols import Batch
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")
ATTACK = Ascent()
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))
TEACHER = Fixed(DATA, 9)


def made(**fields: Any) -> Firebreak:
    return Firebreak(SOURCES, ATTACK, DATA, **fields)


def batch() -> Batch:
    return Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0)


def value(loss: Any, module: nn.Module, store: DictStore | None = None) -> Tensor:
    with seed.streams(0, SPLIT.ids, purpose="fit"):
        out: Tensor = loss.start(store or DictStore(), SPLIT)(module, batch())
    return out


def trained(loss: Any) -> dict[str, Tensor]:
    module = net(DATA)
    Fit(loss=loss, epochs=2, batch_size=16, lr=0.02).train(module, SPLIT, DictStore(), 0)
    return weights(module)


@pytest.mark.parametrize(("clean", "soft"), [(0.5, 0.0), (0.3, 0.6), (0.0, 1.0)])
def test_the_loss_by_hand(clean: float, soft: float) -> None:
    module, teacher = Shown(DATA), TEACHER.load(DictStore())
    found = value(made(clean=clean, soft=soft, steps=0, teacher=TEACHER), module)
    *_, x_adv = [x for x in module.shown if not torch.equal(x, SPLIT.x)]
    taught = teacher(SPLIT.x).softmax(1)

    def distance(x: Tensor) -> Tensor:
        logits = module.inner(x)
        hard = functional.cross_entropy(logits, SPLIT.y)
        return (1 - soft) * hard + soft * functional.kl_div(logits.log_softmax(1), taught, reduction="batchmean")

    torch.testing.assert_close(found, clean * distance(SPLIT.x) + (1 - clean) * distance(x_adv), rtol=1e-5, atol=1e-6)


def test_what_it_falls_back_to() -> None:
    assert same(trained(made(clean=1.0)), trained(CrossEntropy()))
    assert same(trained(made(clean=0.0, steps=0)), trained(PubDef(SOURCES, ATTACK, DATA, mode="random")))
    for other in ({}, {"steps": 0}, {"teacher": TEACHER, "soft": 0.5}, {"clean": 0.0}):
        assert not same(trained(made(**other)), trained(CrossEntropy())), other


def test_examples_begin_at_clean_images_and_at_the_crafts_of_each_source() -> None:
    views = [SPLIT.x, *(Craft(s, ATTACK, DATA, "target").load(DictStore()).x for s in SOURCES)]
    module = Shown(DATA)
    value(made(steps=1), module)
    begins = module.shown[0]
    which = torch.stack([(begins == v).flatten(1).all(1) for v in views]).float()
    assert torch.equal(which.sum(0), torch.ones(60)), "each image is exactly one of the views of its own example"
    assert which.sum(1).min() > 8


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_raise_the_students_loss_and_stay_in_the_ball(steps: int) -> None:
    module = Shown(DATA)
    value(made(steps=steps, step_size=2 / 255), module)
    assert len(module.shown) == steps + 2
    begins, clean, x_adv = module.shown[0], module.shown[steps], module.shown[steps + 1]
    assert torch.equal(clean, SPLIT.x)
    assert float((x_adv - SPLIT.x).abs().max()) <= DEFAULT.eps + 1e-6
    assert float((x_adv - begins).abs().max()) <= steps * 2 / 255 + 1e-6
    with torch.no_grad():
        before, after = (functional.cross_entropy(module.inner(x), SPLIT.y) for x in (begins, x_adv))
    assert float(after) > float(before)


def test_the_teacher_learns_nothing_and_is_not_loaded_without_a_share() -> None:
    store = DictStore()
    value(made(teacher=TEACHER, soft=0.5), net(DATA), store).backward()  # type: ignore[no-untyped-call]
    assert store.made == ["craft", "craft"]
    assert not any(p.requires_grad for p in TEACHER.load(store).parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"soft": 1.2}, r"soft must be in \[0, 1\], got 1.2"),
        ({"clean": -0.1}, r"clean must be in \[0, 1\], got -0.1"),
        ({"soft": 0.5}, "soft = 0.5 needs a teacher, got none"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"part": "evaluation"}, "part must be 'source' or 'target', got 'evaluation'"),
        ({"inner_mode": "test"}, "inner_mode must be 'train' or 'eval', got 'test'"),
    ],
)
def test_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        made(**fields)
    with pytest.raises(SpecError, match="must be untargeted"):
        Firebreak(SOURCES, Ascent(Linf(0.1, targeted=True)), DATA)
