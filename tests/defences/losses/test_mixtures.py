"""Mixtures of stored perturbations: where they lie, what draws them, and that examples do not meet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defence_fakes import DEFAULT, Ascent, DictStore, Fixed, Toy
from torch import Tensor

from firedoor import seed
from firedoor.craft import Craft
from firedoor.defences.augmentation import augmentation
from firedoor.defences.losses.mixtures import check_mixtures, mixtures
from firedoor.errors import SpecError
from firedoor.protocols import Batch, Split
from firedoor.threat import L2, Linf, Threat

DATA = Toy()
SPLIT = DATA.split("target")
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))
ATTACKS = (Ascent(), Ascent(steps=3, share=0.5))


def mixed(
    attacks: tuple[Ascent, ...] = ATTACKS, sources: tuple[Fixed, ...] = SOURCES, epoch: int = 0, split: Split = SPLIT
) -> Tensor:
    mix = mixtures(sources, attacks, DATA, "target", SPLIT, DictStore())
    with seed.streams(0, split.ids, draw=epoch, purpose="fit"):
        return mix(Batch(split.x, split.y, split.ids, epoch))


def added(threat: Threat = DEFAULT) -> Tensor:
    """(pairs, n, *shape)"""
    crafts = [Craft(s, replace(a, threat=threat), DATA, "target").load(DictStore()).x for s in SOURCES for a in ATTACKS]
    return torch.stack(crafts) - SPLIT.x


def inside(x: Tensor) -> Tensor:
    """Where the box stops no step."""
    return (x > DEFAULT.eps) & (x < 1 - DEFAULT.eps)


def test_one_pair_is_its_own_sign_at_full_strength() -> None:
    weak = Ascent(share=0.25)
    x_adv = mixed((weak,), SOURCES[:1])
    d = Craft(SOURCES[0], weak, DATA, "target").load(DictStore()).x - SPLIT.x
    torch.testing.assert_close(x_adv, (SPLIT.x + DEFAULT.eps * d.sign()).clamp(0, 1))
    assert float((d.abs().amax() - DEFAULT.eps).abs()) > 0.1 * DEFAULT.eps, "the stored one is weaker"


def test_mixtures_lie_between_their_parts_and_go_to_the_edge() -> None:
    x_adv, parts = mixed(), added().sign()
    moved = (x_adv - SPLIT.x) / DEFAULT.eps
    assert float(moved.abs().max()) <= 1 + 1e-5
    open_to_all = inside(SPLIT.x)
    agreed = (parts == parts[0]).all(0) & (parts[0] != 0) & open_to_all
    assert bool(agreed.any())
    torch.testing.assert_close(moved[agreed], parts[0][agreed], atol=1e-4, rtol=0)
    disputed = ~(parts == parts[0]).all(0) & open_to_all & (parts != 0).all(0)
    assert bool(disputed.any())
    torch.testing.assert_close(moved[disputed].abs(), torch.ones(int(disputed.sum())), atol=1e-4, rtol=0)


def test_every_pair_leads_somewhere_and_epochs_differ() -> None:
    x_adv, parts = mixed(), added().sign()
    like = torch.stack([((x_adv - SPLIT.x).sign() == p).flatten(1).float().mean(1) for p in parts])
    leads = like.argmax(0).bincount(minlength=len(parts))
    assert int(leads.min()) > 2, leads
    other = mixed(epoch=1)
    assert float((other != x_adv).flatten(1).any(1).float().mean()) > 0.4
    assert torch.equal(x_adv, mixed()), "keyed"


def test_weights_are_dirichlet_of_one_half() -> None:
    """The mean share of each of two parts is 1/2 and its variance 1/8, so the larger one has .82 on average."""
    with seed.streams(0, [str(i) for i in range(4000)], purpose="fit"):
        z = seed.normal(torch.zeros(4000, 2)).square()
    share = (z / z.sum(1, keepdim=True))[:, 0]
    assert abs(float(share.mean()) - 0.5) < 0.02
    assert abs(float(share.var()) - 0.125) < 0.005


def test_in_l2_a_mixture_is_as_long_as_the_budget() -> None:
    threat = L2(0.3)
    x_adv = mixed(tuple(replace(a, threat=threat) for a in ATTACKS))
    free = ((x_adv > 0) & (x_adv < 1)).flatten(1).all(1)
    assert bool(free.any())
    torch.testing.assert_close(threat.size(x_adv - SPLIT.x)[free], torch.full((int(free.sum()),), 0.3), atol=1e-4, rtol=0)


def test_a_mixture_is_augmented_like_its_image() -> None:
    """Zero padding included: what was moved in from outside is no place to attack."""
    mix = mixtures(SOURCES, ATTACKS, DATA, "target", SPLIT, DictStore())
    augment = augmentation("shift-flip", 3, SPLIT.ids, 0)
    with seed.streams(0, SPLIT.ids, purpose="fit"):
        x_adv = mix(Batch(augment(SPLIT.x), SPLIT.y, SPLIT.ids, 0, augment))
    assert torch.equal(x_adv, augment(mixed()))
    assert not torch.equal(x_adv, mixed())
    assert float((x_adv - augment(SPLIT.x)).abs().max()) <= DEFAULT.eps + 1e-6


def test_an_example_alone_gets_what_it_gets_in_company() -> None:
    assert torch.equal(mixed(split=SPLIT[3:4]), mixed()[3:4])


def test_it_refuses() -> None:
    for sources, attacks, part, message in (
        ((), ATTACKS, "target", "Mine needs at least one source, got none"),
        (SOURCES, (), "target", "Mine needs at least one attack, got none"),
        (SOURCES, (Ascent(Linf(0.1)), Ascent(Linf(0.2))), "target", "must have one threat, got"),
        (SOURCES, (Ascent(Linf(0.1, targeted=True)),), "target", "must be untargeted"),
        (SOURCES, ATTACKS, "evaluation", "part must be 'source' or 'target', got 'evaluation'"),
    ):
        with pytest.raises(SpecError, match=message):
            check_mixtures("Mine", sources, attacks, part)
    check_mixtures("Mine", SOURCES, ATTACKS, "source")
