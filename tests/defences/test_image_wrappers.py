"""Known answers of the filters, crops and reconstructions that are put before a network, and what breaks them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from defence_fakes import Ascent, DictStore, Fixed, Toy, net
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.fit import Fit
from firedoor.defences.wrappers.bilateral import Bilateral
from firedoor.defences.wrappers.bit_depth import BitDepth
from firedoor.defences.wrappers.crops import Crops
from firedoor.defences.wrappers.gaussian import Gaussian
from firedoor.defences.wrappers.jpeg import JPEG
from firedoor.defences.wrappers.median import Median
from firedoor.defences.wrappers.non_local_means import NonLocalMeans
from firedoor.defences.wrappers.total_variation import TotalVariation
from firedoor.errors import DataError, SpecError
from firedoor.models.wrapped import Relaxed, RelaxedByIdentity, Wrapped, second_view
from firedoor.protocols import Classifier, SecondView
from firedoor.threat import Linf

DATA = Toy()
TEST = DATA.split("evaluation")
THREAT = Linf(64 / 255)  # the classes differ by 89 levels


def shown_to(wrapper: Any, x: Tensor) -> Tensor:
    """What the wrapper makes of an image."""
    out: Tensor = wrapper.wrap(lambda seen: seen)(x)
    return out


def uniform(*shape: int, key: int = 0) -> Tensor:
    with seed.streams(key, [str(i) for i in range(shape[0])]):
        return seed.uniform(torch.zeros(shape, dtype=torch.float64), 0, 1)


def slope(classifier: Classifier, x: Tensor, along: Tensor) -> Tensor:
    """The gradient of sum(along * classifier(x)) as the backward pass gives it."""
    x = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad((along * classifier(x)).sum(), x)
    return g


# ------------------------------------------------------------------ filters


def bilateral_by_hand(x: Tensor, reach: int, colour: float, space: float) -> Tensor:
    h, w = x.shape[2:]
    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            total = weights = torch.zeros((), dtype=x.dtype)
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    other = x[0, :, min(max(i + di, 0), h - 1), min(max(j + dj, 0), w - 1)]
                    unlike = float((other - x[0, :, i, j]).square().mean())
                    weight = math.exp(-(di * di + dj * dj) / (2 * space**2) - unlike / (2 * colour**2))
                    total, weights = total + weight * other, weights + weight
            out[0, :, i, j] = total / weights
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_bilateral_by_hand(channels: int) -> None:
    x = uniform(1, channels, 6, 5)
    torch.testing.assert_close(shown_to(Bilateral(3, 0.2, 0.8), x), bilateral_by_hand(x, 1, 0.2, 0.8))


def non_local_by_hand(x: Tensor, search: int, patch: int, strength: float) -> Tensor:
    h, w = x.shape[2:]
    out = torch.zeros_like(x)

    def at(i: int, j: int) -> Tensor:
        return x[0, :, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]

    def around(i: int, j: int) -> Tensor:
        reach = range(-(patch // 2), patch // 2 + 1)
        return torch.stack([at(i + a, j + b) for a in reach for b in reach])

    for i in range(h):
        for j in range(w):
            total = weights = torch.zeros((), dtype=x.dtype)
            for di in range(-(search // 2), search // 2 + 1):
                for dj in range(-(search // 2), search // 2 + 1):
                    unlike = float((around(i + di, j + dj) - around(i, j)).square().mean())
                    weight = math.exp(-unlike / (strength / 255) ** 2)
                    total, weights = total + weight * at(i + di, j + dj), weights + weight
            out[0, :, i, j] = total / weights
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_non_local_means_by_hand(channels: int) -> None:
    x = uniform(1, channels, 6, 5)
    torch.testing.assert_close(shown_to(NonLocalMeans(3, 3, 60.0), x), non_local_by_hand(x, 3, 3, 60.0))


@pytest.mark.parametrize("wrapper", [Bilateral(), NonLocalMeans(strength=24.0)], ids=repr)
def test_noise_is_averaged_away_and_an_edge_stays(wrapper: Any) -> None:
    clean = torch.zeros(1, 1, 24, 24)
    clean[:, :, :, 12:] = 0.8
    with seed.streams(0, ["0"]):
        x = 0.1 + clean + seed.normal(clean, 0.03)
    left = shown_to(wrapper, x) - 0.1 - clean
    assert left.std() < 0.4 * 0.03
    assert left[..., 10:14].abs().max() < 0.1, "the edge of 0.8 is blurred"
    flat = torch.full((2, 3, 9, 7), 0.3)
    torch.testing.assert_close(shown_to(wrapper, flat), flat)


@pytest.mark.parametrize("wrapper", [Bilateral(3), NonLocalMeans(3, 3, 60.0)], ids=repr)
def test_the_filters_differentiate_themselves(wrapper: Any) -> None:
    """Terms are computed again for the backward pass, so it is checked against differences."""
    assert torch.autograd.gradcheck(wrapper.wrap(lambda seen: seen), uniform(2, 2, 4, 5).requires_grad_())


def test_non_local_means_relaxes_to_the_mean_with_these_weights() -> None:
    """With constant weights the step is linear: its gradient is exact for any size of difference."""
    wrapper, x, along = NonLocalMeans(5, 3, 60.0), uniform(1, 1, 6, 6), uniform(1, 1, 6, 6, key=1)
    moved = x + uniform(1, 1, 6, 6, key=2)
    change = (along * (wrapper._mean(moved, x) - wrapper._mean(x, x))).sum()
    g = slope(wrapper.relax(lambda seen: seen), x, along)
    torch.testing.assert_close((g * (moved - x)).sum(), change)
    assert not torch.allclose(g, slope(wrapper.wrap(lambda seen: seen), x, along)), "the naive gradient turns the weights too"


# ------------------------------------------------------------------ total variation


@pytest.mark.parametrize(("low", "high", "weight"), [(0.2, 0.8, 0.4), (0.9, 0.1, 1.0), (0.4, 0.6, 2.0)])
def test_total_variation_brings_two_halves_together_by_the_closed_form(low: float, high: float, weight: float) -> None:
    """h rows of 8: each half moves by weight h / (2 * 4 h) = weight / 8 towards the other, until they meet."""
    x = torch.full((1, 2, 6, 8), low, dtype=torch.float64)
    x[..., 4:] = high
    shift = math.copysign(min(weight / 8, abs(high - low) / 2), high - low)
    wanted = torch.where(torch.arange(8) < 4, low + shift, high - shift).expand_as(x).double()
    torch.testing.assert_close(shown_to(TotalVariation(weight, 1.0, steps=1000), x), wanted, rtol=0, atol=2e-3)


def test_total_variation_is_near_its_minimum_after_the_steps_it_takes() -> None:
    """On pictures of blobs, against a run 40 times as long, in levels of 255."""
    at = torch.arange(32.0) / 5
    x = (0.5 + 0.4 * (at[:, None].sin() * at.cos()).sign()).expand(3, 1, 32, 32) + 0.05 * uniform(3, 1, 32, 32).float()
    with seed.streams(0, list("abc")):
        short = shown_to(TotalVariation(), x)
    with seed.streams(0, list("abc")):
        best = shown_to(TotalVariation(steps=4000), x)
    assert 255 * (short - best).abs().mean() < 1
    clean = x - 0.05 * uniform(3, 1, 32, 32).float()
    assert ((best - best.mean()) * (clean - clean.mean())).mean() > 0.14, "the blobs are still there, of variance .16"


def test_total_variation_looks_at_the_pixels_it_keeps_only() -> None:
    x, ids = uniform(40, 1, 12, 12), [str(i) for i in range(40)]
    with seed.streams(0, ids):
        kept = seed.uniform(x, 0, 1) < 0.3
    assert float(kept.double().mean()) == pytest.approx(0.3, abs=0.02)
    outputs = []
    for seen in (x, torch.where(kept, x, 1 - x)):
        with seed.streams(0, ids):
            outputs.append(shown_to(TotalVariation(keep=0.3), seen))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (outputs[0] - x)[kept].abs().mean() < 0.1, "what is kept stays near"
    flat = torch.full((2, 1, 9, 9), 0.7)
    torch.testing.assert_close(shown_to(TotalVariation(), flat), flat)


def test_total_variation_goes_back_through_the_identity_averaged_over_draws() -> None:
    linear = nn.Linear(16, 3)
    x = uniform(4, 1, 4, 4).float()

    def model(seen: Tensor) -> Tensor:
        out: Tensor = linear(seen.flatten(1))
        return out

    wrapper, ids, along = TotalVariation(n=3), list("abcd"), torch.eye(3)[[0, 1, 2, 0]]
    with seed.streams(0, ids):
        g = slope(wrapper.relax(model), x, along)
    with seed.streams(0, ids):
        drawn = shown_to(wrapper, x.repeat(3, 1, 1, 1))
    leaf = drawn.requires_grad_()
    out = model(leaf).softmax(1).view(3, 4, 3).mean(0).log()
    (each,) = torch.autograd.grad((along * out).sum(), leaf)
    torch.testing.assert_close(g, each.view(3, 4, 1, 4, 4).sum(0))


# ------------------------------------------------------------------ crops


def test_crops_are_enlarged_blocks_at_every_place() -> None:
    n, side = 300, 12
    row = torch.arange(float(side)).view(1, 1, side, 1).expand(n, 1, side, side)
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)[:, :3]

    for picture in (row, row.mT.contiguous()):
        with seed.streams(0, [str(i) for i in range(n)]):
            Crops(0.75, crops=1, n=1).wrap(look)(picture)
        shown = seen.pop()
        assert shown.shape == picture.shape
        first, last = shown.amin((1, 2, 3)), shown.amax((1, 2, 3))
        assert set(first.tolist()) == {0.0, 1.0, 2.0, 3.0}
        assert bool((last - first == 8).all()), "9 of 12 rows, the first and the last whole"


def test_crops_average_probabilities_and_relax_averages_more() -> None:
    x, ids = uniform(5, 1, 8, 8).float(), list("abcde")
    asked: list[int] = []

    def model(seen: Tensor) -> Tensor:
        asked.append(len(seen))
        return 5 * seen.flatten(1)[:, :3]

    wrapper = Crops(0.5, crops=7, n=11)
    with seed.streams(0, ids):
        got = wrapper.wrap(model)(x)
    single = Crops(0.5, crops=1, n=1).wrap(model)
    with seed.streams(0, ids):
        draws = single(x.repeat(7, 1, 1, 1)).view(7, 5, 3)
    torch.testing.assert_close(got.exp(), draws.exp().mean(0))
    assert not torch.equal(draws[0], draws[1])
    with seed.streams(0, ids):
        wrapper.relax(model)(x)
    assert asked == [35, 35, 55]


# ------------------------------------------------------------------ two views, and what breaks them


def test_a_second_view_is_found_under_other_wrappers() -> None:
    net, jpeg = Fixed(), JPEG(50)
    inner = Wrapped(net, jpeg)
    assert second_view(inner) == RelaxedByIdentity(net, jpeg)
    assert second_view(Wrapped(inner, Median())) == Relaxed(RelaxedByIdentity(net, jpeg), Median())
    assert second_view(Wrapped(net, Median())) is None
    assert second_view(net) is None


def test_the_wrappers_with_a_second_view_go_back_through_the_identity() -> None:
    x, along = (255 * uniform(3, 1, 8, 8)).round().div(255), uniform(3, 1, 8, 8, key=1)
    for wrapper in (JPEG(50), NonLocalMeans(strength=32.0)):
        assert isinstance(wrapper, SecondView)
        other, relaxed = wrapper.relax_by_identity(lambda seen: seen), wrapper.relax(lambda seen: seen)
        assert torch.equal(other(x), relaxed(x))
        assert torch.equal(other(x), shown_to(wrapper, x))
        assert torch.equal(slope(other, x, along), along)
        assert not torch.allclose(slope(relaxed, x, along), along, atol=1e-3), "two views, not one twice"
    for single in (BitDepth(), Median(), Gaussian(), Bilateral(), TotalVariation(), Crops()):
        assert not isinstance(single, SecondView)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    module = net(DATA, key=1)
    Fit(epochs=6, batch_size=16, lr=0.05).train(module, DATA.split("target"), DictStore(), 0)
    return module.eval().requires_grad_(False)


def right(classifier: Classifier, x: Tensor) -> float:
    """The share of right answers on 8-bit images."""
    with torch.no_grad(), seed.streams(9, TEST.ids):
        return float((classifier((255 * x).round() / 255).argmax(1) == TEST.y).float().mean())


@pytest.mark.parametrize("name", ["JPEG", "JPEG by identity", "BitDepth", "TotalVariation"])
def test_what_has_no_gradient_falls_through_relax(name: str, model: nn.Module) -> None:
    wrapper = {"BitDepth": BitDepth(3), "TotalVariation": TotalVariation(steps=20, n=5)}.get(name, JPEG())
    deployed = wrapper.wrap(model)
    view = JPEG().relax_by_identity(model) if name == "JPEG by identity" else wrapper.relax(model)
    assert right(deployed, TEST.x) >= 0.95
    with seed.streams(0, TEST.ids):
        noise = THREAT.project(TEST.x + THREAT.eps * seed.normal(TEST.x).sign(), TEST.x)
    assert right(deployed, noise) >= 0.9, "noise of that size is no attack"
    with seed.streams(0, TEST.ids):
        leaf = TEST.x.clone().requires_grad_()
        logits = deployed(leaf)
        assert not logits.requires_grad or not torch.autograd.grad(logits.square().sum(), leaf)[0].any(), "naive: nothing to follow"
        x_adv = Ascent(THREAT, steps=8, share=0.25)(view, TEST.x, TEST.y)
    assert right(deployed, x_adv) <= 0.1


@pytest.mark.parametrize("wrapper", [Bilateral(), NonLocalMeans(5, strength=16.0), Crops(0.9, crops=5, n=10)], ids=repr)
def test_what_has_a_gradient_falls_too(wrapper: Any, model: nn.Module) -> None:
    deployed = wrapper.wrap(model)
    assert right(deployed, TEST.x) >= 0.95
    with seed.streams(0, TEST.ids):
        x_adv = Ascent(THREAT, steps=8, share=0.25)(wrapper.relax(model), TEST.x, TEST.y)
    assert right(deployed, x_adv) <= 0.1


def test_wrong_use_is_refused_with_a_remedy() -> None:
    flat = TEST.x.flatten(1)
    for wrapper in (Bilateral(), NonLocalMeans(), TotalVariation(), Crops()):
        with pytest.raises(DataError, match=r"needs images \(n, c, h, w\), got"):
            wrapper.wrap(lambda seen: seen)(flat)
    makers = [
        lambda: Bilateral(4), lambda: Bilateral(0), lambda: Bilateral(sigma_colour=-1.0), lambda: Bilateral(sigma_space=math.inf),
        lambda: NonLocalMeans(search=10), lambda: NonLocalMeans(patch=0), lambda: NonLocalMeans(strength=-1.0),
        lambda: TotalVariation(weight=-1.0), lambda: TotalVariation(keep=0.0), lambda: TotalVariation(weight=0.0),
        lambda: TotalVariation(steps=0), lambda: TotalVariation(n=0),
        lambda: Crops(0.0), lambda: Crops(1.1), lambda: Crops(crops=0), lambda: Crops(crops=30, n=20),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(SpecError, match="got"):
            make()  # type: ignore[no-untyped-call]
