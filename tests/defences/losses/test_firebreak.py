"""Firebreak: its formula against torch's loss, what it shows the network, what it costs, and what it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from defence_fakes import Ascent, DictStore, Fixed, Shown, Toy, net, same, weights
from torch import Tensor
from torch.nn import functional

from firedoor import seed
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.firebreak import Firebreak
from firedoor.defences.losses.mixtures import mixtures
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.stored import crafts_for
from firedoor.errors import SpecError
from firedoor.protocols import Batch

DATA = Toy()
SPLIT = DATA.split("target")
ATTACKS = (Ascent(), Ascent(steps=3, share=0.5))
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))


def made(**fields: Any) -> Firebreak:
    return Firebreak(SOURCES, ATTACKS, DATA, **fields)


def shown(loss: Any, epoch: int = 0) -> tuple[Tensor, Tensor, Shown]:
    module, live = Shown(DATA), loss.start(DictStore(), SPLIT)
    with seed.streams(0, SPLIT.ids, draw=epoch, purpose="fit"):
        value = live(module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, epoch))
    assert len(module.shown) == 1, "one pass"
    return value, module.shown[0], module


def test_the_loss_by_hand() -> None:
    value, x, module = shown(made())
    mix = mixtures(SOURCES, ATTACKS, DATA, "target", SPLIT, DictStore())
    with seed.streams(0, SPLIT.ids, purpose="fit"):
        assert torch.equal(x, mix(Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0)))
    assert not (x == SPLIT.x).flatten(1).all(1).any(), "no example as it is"
    torch.testing.assert_close(value, functional.cross_entropy(module.inner(x), SPLIT.y))


def test_a_share_of_the_examples_is_shown_as_it_is_and_another_one_each_epoch() -> None:
    _, x, module = shown(made(clean=0.4))
    as_it_is = (x == SPLIT.x).flatten(1).all(1)
    assert 0.2 < float(as_it_is.float().mean()) < 0.6
    again = (shown(made(clean=0.4), epoch=1)[1] == SPLIT.x).flatten(1).all(1)
    assert not torch.equal(as_it_is, again)
    value, _, _ = shown(made(clean=0.4))
    torch.testing.assert_close(value, functional.cross_entropy(module.inner(x), SPLIT.y))


def test_all_clean_is_plain_training() -> None:
    def trained(loss: Any) -> dict[str, Tensor]:
        module = net(DATA)
        Fit(loss=loss, epochs=2, batch_size=16, lr=0.02).train(module, SPLIT, DictStore(), 0)
        return weights(module)

    assert same(trained(made(clean=1.0)), trained(CrossEntropy()))
    assert not same(trained(made()), trained(CrossEntropy()))
    assert not same(trained(made()), trained(PubDef(SOURCES, ATTACKS[0], DATA, mode="random")))


def test_a_run_makes_the_craft_of_every_pair_beforehand_and_once() -> None:
    store = DictStore()
    crafts = crafts_for(made())
    assert [(c.source, c.attack) for c in crafts] == [(s, a) for s in SOURCES for a in ATTACKS]
    for craft in crafts:
        craft.load(store)
    made().start(store, SPLIT)
    assert store.made.count("craft") == 4


def test_it_refuses() -> None:
    for clean in (-0.1, 1.2, float("nan")):
        with pytest.raises(SpecError, match=r"clean must be in \[0, 1\], got"):
            made(clean=clean)
    with pytest.raises(SpecError, match="Firebreak needs at least one attack, got none"):
        Firebreak(SOURCES, (), DATA)
