"""Alarm: its formula against torch's loss, what it shows the network, and that it tells attacks on images it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from defence_fakes import Ascent, DictStore, Fixed, Shown, Toy, net
from torch import Tensor
from torch.nn import functional

from firedoor import seed
from firedoor.craft import Craft
from firedoor.defences.fit import Fit
from firedoor.defences.losses.alarm import Alarm
from firedoor.defences.losses.mixtures import mixtures
from firedoor.defences.wrappers.jpeg import JPEG
from firedoor.defences.wrappers.noise import Noise
from firedoor.errors import SpecError
from firedoor.protocols import Batch, Classifier, Store
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")
N = len(SPLIT)
ATTACKS = (Ascent(), Ascent(steps=3, share=0.5))
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))


@dataclass(frozen=True)
class Grey:
    """A handling that nobody can miss."""

    stochastic: ClassVar[bool] = False

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return lambda x: model(torch.full_like(x, 0.4))

    relax = wrap


def made(**fields: Any) -> Alarm:
    return Alarm(SOURCES, ATTACKS, DATA, **fields)


def shown(loss: Alarm, epoch: int = 0) -> tuple[Tensor, Tensor, Shown]:
    """The value, what was shown, and the network."""
    module, live = Shown(DATA), loss.start(DictStore(), SPLIT)
    with seed.streams(0, SPLIT.ids, draw=epoch, purpose="fit"):
        value = live(module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, epoch))
    assert len(module.shown) == 1, "one forward pass"
    return value, module.shown[0], module


def test_clean_images_are_calm_and_mixtures_are_not() -> None:
    value, x, module = shown(made())
    assert torch.equal(x[:N], SPLIT.x)
    mix = mixtures(SOURCES, ATTACKS, DATA, "target", SPLIT, DictStore())
    with seed.streams(0, SPLIT.ids, purpose="fit"):
        torch.testing.assert_close(x[N:], mix(Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0)), atol=0.5 / 255, rtol=0)
    with torch.no_grad():
        first = module.inner(x)[:, 0]
    wanted = torch.cat([torch.zeros(N), torch.ones(N)])
    torch.testing.assert_close(value, functional.binary_cross_entropy_with_logits(first, wanted))


def test_another_epoch_draws_other_mixtures() -> None:
    assert not torch.equal(shown(made())[1], shown(made(), epoch=1)[1])


def test_a_weaker_attack_is_a_part_of_the_same_change() -> None:
    _, x, _ = shown(made(weakest=0.25))
    _, whole, _ = shown(made())
    share = (x[N:] - SPLIT.x).flatten(1).norm(dim=1) / (whole[N:] - SPLIT.x).flatten(1).norm(dim=1)
    assert 0.2 < float(share.min()) < 0.45
    assert 0.85 < float(share.max()) <= 1.0
    assert torch.equal((255 * x).round() / 255, x), "8-bit, as everything that is evaluated"


def test_both_kinds_are_handled_and_some_images_of_each_are_not() -> None:
    _, x, _ = shown(made(handling=(Grey(), Grey())))
    grey = (x - 0.4).abs().flatten(1).amax(1) < 1e-6
    for kind in (grey[:N], grey[N:]):
        assert 0.4 < float(kind.float().mean()) < 0.9  # two of three


def test_handling_takes_wrappers_that_draw() -> None:
    _, x, _ = shown(made(handling=(JPEG(75), Noise(4 / 255))))
    assert torch.equal(x, shown(made(handling=(JPEG(75), Noise(4 / 255))))[1]), "keyed"
    assert torch.equal((255 * x).round() / 255, x)


def test_it_tells_attacks_on_images_that_it_never_saw() -> None:
    store, module = DictStore(), net(DATA)
    attack = Ascent(Linf(32 / 255))
    loss = Alarm(SOURCES, (attack,), DATA, handling=(Noise(2 / 255),))
    Fit(loss=loss, epochs=20, batch_size=20, lr=0.01, optimiser="adamw").train(module, SPLIT, store, 0)
    module.eval()
    test = DATA.split("evaluation")
    attacked = [Craft(s, attack, DATA, "evaluation").load(store).x for s in SOURCES]
    with torch.no_grad():
        sounds = [float((module(x)[:, 0] > 0).float().mean()) for x in (test.x, *attacked)]
    assert sounds[0] < 0.2
    assert min(sounds[1:]) > 0.8


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(SpecError, match="at least one source"):
        Alarm((), ATTACKS, DATA)
    for weakest in (0.0, 1.5, float("nan")):
        with pytest.raises(SpecError, match=r"weakest must be in \(0, 1\]"):
            made(weakest=weakest)
    with pytest.raises(SpecError, match="part must be"):
        made(part="evaluation")
    with pytest.raises(SpecError, match="untargeted"):
        Alarm(SOURCES, (Ascent(Linf(0.1, targeted=True)),), DATA)
