"""Known answers of every wrapper, and that wrap, relax and `stochastic` keep their word."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from defence_fakes import DictStore, Fixed, Toy, net, same, weights
from PIL import Image
from torch import Tensor, nn

from firedoor import catalogue, seed
from firedoor.architectures.unet import UNet
from firedoor.defences.fit import Fit
from firedoor.defences.losses.guided_denoising import GuidedDenoising
from firedoor.defences.wrappers.bilateral import Bilateral
from firedoor.defences.wrappers.bit_depth import BitDepth
from firedoor.defences.wrappers.crops import Crops
from firedoor.defences.wrappers.denoiser import Denoiser
from firedoor.defences.wrappers.gate import Gate
from firedoor.defences.wrappers.gaussian import Gaussian
from firedoor.defences.wrappers.jpeg import JPEG
from firedoor.defences.wrappers.median import Median
from firedoor.defences.wrappers.noise import Noise
from firedoor.defences.wrappers.non_local_means import NonLocalMeans
from firedoor.defences.wrappers.random_member import RandomMember
from firedoor.defences.wrappers.resize_pad import ResizePad
from firedoor.defences.wrappers.smoothing import Smoothing
from firedoor.defences.wrappers.squeezing import Squeezing
from firedoor.defences.wrappers.total_variation import TotalVariation
from firedoor.defences.wrappers.vote import Vote
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Access, Classifier, Model, Store

DATA = Toy()
TEST = DATA.split("evaluation")


@dataclass(frozen=True)
class Cleaner:
    """A denoiser recipe: an untrained U-Net with a last layer that does something."""

    access = Access.GRADIENTS
    stochastic = False

    def load(self, store: Store) -> nn.Module:
        with seed.forked(0, "cleaner"):
            module = UNet(width=4, depth=1).build(DATA.shape, 0)
            nn.init.normal_(module.last.weight, 0, 0.02)  # type: ignore[arg-type,union-attr]
        return module.eval().requires_grad_(False)

    def relax(self) -> Model:
        return self


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A pair of trained networks with `.members`, answering with their mean logits."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([net(DATA, key=1), net(DATA, key=2)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([m(x) for m in self.members]).mean(0)

    pair = Pair()
    for member in pair.members:
        Fit(epochs=6, batch_size=16, lr=0.05).train(member, DATA.split("target"), DictStore(), 0)
    return pair.eval()


class VoteOnNoise:
    """A vote needs a random model to vote on."""

    stochastic = True

    def wrap(self, model: Classifier, store: Store) -> Classifier:
        return Vote(5).wrap(Noise(0.3).wrap(model, store), store)

    def relax(self, model: Classifier, store: Store) -> Classifier:
        return Vote(5).relax(Noise(0.3).relax(model, store), store)


WRAPPERS: dict[str, Any] = {
    "JPEG": JPEG(),
    "BitDepth": BitDepth(3),
    "Median": Median(),
    "Gaussian": Gaussian(),
    "Bilateral": Bilateral(),
    "NonLocalMeans": NonLocalMeans(strength=16.0),
    "TotalVariation": TotalVariation(steps=40, n=10),
    "Crops": Crops(),
    "Squeezing": Squeezing(0.5),
    "Denoiser": Denoiser(Cleaner()),
    "Gate": Gate(Fixed(DATA, 7), Fixed(DATA, 8)),
    "Noise": Noise(),
    "ResizePad": ResizePad(),
    "RandomMember": RandomMember(),
    "Smoothing": Smoothing(0.1),
    "Vote": VoteOnNoise(),
}
NO_CHANGE: dict[str, Any] = {
    "BitDepth(8)": BitDepth(8),
    "Median(1)": Median(1),
    "Gaussian(0)": Gaussian(0.0),
    "Bilateral without colour": Bilateral(sigma_colour=0.0),
    "Bilateral without space": Bilateral(sigma_space=0.0),
    "Bilateral(1)": Bilateral(1),
    "NonLocalMeans(strength=0)": NonLocalMeans(strength=0.0),
    "NonLocalMeans(1)": NonLocalMeans(1),
    "TotalVariation without weight": TotalVariation(weight=0.0, keep=1.0),
    "Crops(1)": Crops(1.0),
    "Noise(0)": Noise(0.0),
    "ResizePad without a range": ResizePad(1.0, 1.0),
}


def gradient(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    logits = classifier(x)
    if not logits.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), x, allow_unused=True)
    return torch.zeros_like(x) if g is None else g


def shown_to(wrapper: Any, x: Tensor) -> Tensor:
    """What the wrapper makes of an image."""
    out: Tensor = wrapper.wrap(lambda seen: seen)(x)
    return out


def test_every_listed_wrapper_is_tested_here() -> None:
    assert {e.name for e in catalogue.entries("wrappers")} <= set(WRAPPERS)


@pytest.mark.parametrize("name", NO_CHANGE)
def test_a_wrapper_that_changes_nothing_is_the_bare_model_bit_for_bit(name: str, model: nn.Module) -> None:
    assert torch.equal(NO_CHANGE[name].wrap(model)(TEST.x), model(TEST.x))


def test_a_random_member_of_one_is_that_member(model: nn.Module) -> None:
    class One(nn.Module):
        members = nn.ModuleList([model.members[0]])  # type: ignore[index]

    assert torch.equal(RandomMember().wrap(One())(TEST.x), model.members[0](TEST.x))  # type: ignore[index,operator]


@pytest.mark.parametrize("name", WRAPPERS)
def test_relax_agrees_with_wrap_and_has_a_gradient_for_every_image(name: str, model: nn.Module) -> None:
    wrapper, store = WRAPPERS[name], DictStore()
    before = weights(model)
    wrapped, relaxed = wrapper.wrap(model, store), wrapper.relax(model, store)
    votes = torch.zeros(())
    for draw in range(21 if wrapper.stochastic else 1):
        with seed.streams(0, TEST.ids, draw=draw):
            hard = wrapped(TEST.x)
        votes = votes + nn.functional.one_hot(hard.argmax(1), hard.shape[1])
    with seed.streams(1, TEST.ids):
        soft = relaxed(TEST.x)
        slope = gradient(relaxed, TEST.x, TEST.y)
    assert bool(torch.isfinite(slope).all())
    assert int((slope.flatten(1).abs().amax(1) > 0).sum()) == len(TEST), "an image without gradient"
    assert (votes.argmax(1) == soft.argmax(1)).float().mean() >= 0.9
    if getattr(wrapper, "abstains", False):
        assert hard.shape == soft.shape == (len(TEST), 4), "one more label, for an answer that is not given"
    elif not wrapper.stochastic:
        assert torch.equal(hard, soft), "the forward pass of relax must be exact"
    assert same(before, weights(model))
    assert not wrapped.training
    assert not relaxed.training
    assert any(m is model or m is getattr(model, "members", None) for m in wrapped.modules()), "the guard must see the model inside"


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("JPEG", True),
        ("BitDepth", True),
        ("TotalVariation", True),
        ("Median", False),
        ("Gaussian", False),
        ("Bilateral", False),
        ("NonLocalMeans", False),
        ("Crops", False),
    ],
)
def test_the_naive_gradient_is_dead_exactly_where_it_should_be(name: str, masked: bool, model: nn.Module) -> None:
    slope = gradient(WRAPPERS[name].wrap(model), TEST.x, TEST.y)
    assert bool((slope == 0).all()) == masked


@pytest.mark.parametrize("name", WRAPPERS)
def test_stochastic_is_true_iff_two_draws_differ(name: str, model: nn.Module) -> None:
    wrapper = WRAPPERS[name]
    if name == "Vote":  # of something that draws
        model = Noise(0.3).wrap(model)  # type: ignore[assignment]
    wrapped = wrapper.wrap(model, DictStore())
    outputs = []
    for draw in (0, 0, 1):
        with seed.streams(0, TEST.ids, draw=draw):
            outputs.append(wrapped(TEST.x))
    assert torch.equal(outputs[0], outputs[1])
    assert (not torch.equal(outputs[0], outputs[2])) == wrapper.stochastic
    with seed.streams(0, TEST.ids):
        first, second = wrapped(TEST.x), wrapped(TEST.x)
    assert (not torch.equal(first, second)) == wrapper.stochastic, "two queries of one stream are two draws"


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("relaxed", [False, True])
def test_an_answer_does_not_depend_on_the_batch(name: str, relaxed: bool, model: nn.Module) -> None:
    wrapper = WRAPPERS[name]
    classifier = (wrapper.relax if relaxed else wrapper.wrap)(model, DictStore())
    with seed.streams(0, TEST.ids):
        whole = classifier(TEST.x)
    rows = [41, 3, 17]
    with seed.streams(0, [TEST.ids[i] for i in rows]):
        part = classifier(TEST.x[rows])
    torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 23)])
@pytest.mark.parametrize(
    "wrapper",
    [
        *(JPEG(), BitDepth(4), Median(), Median(2), Gaussian(1.0), Noise(), ResizePad()),
        *(Bilateral(), NonLocalMeans(strength=64.0), TotalVariation()),
    ],
    ids=repr,
)
def test_images_of_any_size_keep_it(shape: tuple[int, ...], wrapper: Any) -> None:
    with seed.streams(0, list("abcdefgh")):
        x = (255 * seed.uniform(torch.zeros(8, *shape), 0, 1)).round() / 255
        out = shown_to(wrapper, x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert not torch.equal(out, x)


# ------------------------------------------------------------------ known answers


def test_bit_depth_knows_its_levels() -> None:
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(shown_to(BitDepth(1), x), (x >= 128 / 255).float())
    four = shown_to(BitDepth(2), x).flatten()
    assert torch.equal(four.unique(), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    assert (four - x.flatten()).abs().max() <= 1 / 6 + 1e-6
    for bits in range(1, 9):
        out = shown_to(BitDepth(bits), x)
        assert len(out.unique()) == 2**bits
        assert torch.equal(shown_to(BitDepth(bits), out), out) or bits not in (1, 2, 4, 8)  # 255 is a multiple of these tops


def test_median_removes_a_single_outlier_and_keeps_an_edge() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[:, :, :, 4:] = 1
    dirty = x.clone()
    dirty[0, 0, 2, 1] = 1
    assert torch.equal(shown_to(Median(3), dirty), x)


def test_median_takes_the_middle_of_nine() -> None:
    x = torch.randperm(9, generator=torch.Generator().manual_seed(0)).float().view(1, 1, 3, 3)
    assert shown_to(Median(3), x)[0, 0, 1, 1] == 4


def test_gaussian_keeps_constants_and_has_the_deviation_it_says() -> None:
    flat = torch.full((1, 2, 9, 9), 0.3)
    torch.testing.assert_close(shown_to(Gaussian(1.0), flat), flat)
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    out = shown_to(Gaussian(1.0), point)[0, 0]
    place = torch.arange(21.0) - 10
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    assert float((out.sum(0) * place**2).sum()) == pytest.approx(1.0, abs=0.03)
    assert float(out[10, 11] / out[10, 10]) == pytest.approx(math.exp(-0.5), rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_codec(channels: int) -> None:
    with seed.streams(0, ["a", "b"]):
        x = (255 * seed.uniform(torch.zeros(2, channels, 16, 24), 0, 1)).round() / 255
    out = shown_to(JPEG(quality=30), x)
    for image, decoded in zip(x, out, strict=True):
        pixels = (255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy().squeeze()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=30)  # 4:2:0 is the default of the codec
        again = np.asarray(Image.open(buffer)).astype(np.float32) / 255
        assert np.array_equal(decoded.permute(1, 2, 0).numpy().squeeze(), again)
    assert torch.equal((255 * out).round() / 255, out), "decoded pixels are 8-bit"


def test_jpeg_of_high_quality_is_close_and_subsampling_matters() -> None:
    x = (255 * torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)).round() / 255
    assert (shown_to(JPEG(100, "4:4:4"), x) - x).abs().max() <= 3 / 255
    red_and_blue = torch.zeros(1, 3, 16, 16)  # in stripes of one pixel: no chroma left after subsampling
    red_and_blue[:, 0, :, ::2] = red_and_blue[:, 2, :, 1::2] = 1
    errors = {s: float((shown_to(JPEG(95, s), red_and_blue) - red_and_blue).abs().mean()) for s in ("4:4:4", "4:2:2", "4:2:0")}
    assert errors["4:4:4"] < 0.1 < errors["4:2:2"]
    assert errors["4:2:0"] > 0.1


@pytest.mark.parametrize("side", [8, 28, 32])
def test_resize_pad_shows_whole_rows_and_columns_of_the_image_on_zeros(side: int) -> None:
    n = 300
    ids = list(map(str, range(n)))
    row = torch.arange(1.0, side + 1).view(1, 1, side, 1).expand(n, 1, side, side)
    sizes, starts = set(), set()
    with seed.streams(0, ids):
        out = shown_to(ResizePad(0.8, 1.0), row)
    for image in out[:, 0]:
        column = image.amax(1)
        shown = column.nonzero()[:, 0]
        size, start = len(shown), int(shown[0])
        assert torch.equal(shown, torch.arange(start, start + size)), "the picture is one block"
        wanted = torch.arange(size) * side // size + 1
        assert torch.equal(column[shown].long(), wanted), "nearest resize, by hand"
        sizes.add(size)
        starts.add(start)
    least = round(0.8 * side)
    assert sizes == set(range(least, side + 1))
    assert starts == set(range(side - least + 1))


def test_resize_pad_enlarges_as_in_the_paper_and_flips() -> None:
    x = torch.rand(4, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    with seed.streams(0, list("abcd")):
        assert shown_to(ResizePad(310 / 299, 331 / 299), x).shape == (4, 3, 33, 33)
    many = torch.arange(8.0).view(1, 1, 1, 8).expand(200, 1, 8, 8)
    with seed.streams(0, list(map(str, range(200)))):
        out = shown_to(ResizePad(1.0, 1.0, flip=True), many)
    turned = (out[:, 0, 0, 0] == 7).float().mean()
    assert 0.35 < turned < 0.65


def test_noise_has_its_deviation_and_relax_is_the_log_mean_softmax() -> None:
    x = torch.full((50, 1, 16, 16), 0.5)
    ids = list(map(str, range(50)))
    with seed.streams(0, ids):
        added = shown_to(Noise(0.1), x) - x
    assert float(added.std()) == pytest.approx(0.1, rel=0.03)

    def linear(seen: Tensor) -> Tensor:
        return 5 * seen.flatten(1)[:, :3]

    with seed.streams(0, ids):
        got = Noise(0.1, n=7).relax(linear)(x)
    with seed.streams(0, ids):
        copies = x.repeat(7, 1, 1, 1)
        draws = linear(copies + seed.normal(copies, 0.1)).view(7, 50, 3)
    torch.testing.assert_close(got.exp(), draws.softmax(2).mean(0))
    assert not torch.equal(draws[0], draws[1])


def test_random_member_shows_each_member_equally_and_relaxes_to_all(model: nn.Module) -> None:
    views = torch.stack([m(TEST.x) for m in model.members])  # type: ignore[union-attr]
    wrapped, counts = RandomMember().wrap(model), torch.zeros(2)
    for draw in range(30):
        with seed.streams(0, TEST.ids, draw=draw):
            out = wrapped(TEST.x)
        which = (views == out).all(2)
        assert bool(which.any(0).all())
        counts += which.sum(1)
    assert abs(float(counts[0] / counts.sum()) - 0.5) < 4 * (0.25 / 1800) ** 0.5
    torch.testing.assert_close(RandomMember().relax(model)(TEST.x).exp(), views.softmax(2).mean(0), rtol=1e-4, atol=1e-6)


def test_denoiser_puts_its_network_first(model: nn.Module) -> None:
    wrapped = Denoiser(Cleaner()).wrap(model, DictStore())
    cleaned = Cleaner().load(DictStore())(TEST.x)
    assert not torch.equal(cleaned, TEST.x)
    assert torch.equal(wrapped(TEST.x), model(cleaned))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 5)])
def test_an_untrained_unet_is_the_identity_and_learns(shape: tuple[int, ...]) -> None:
    module = UNet(width=4).build(shape, 10)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), x)
    (module(x) - x / 2).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_fitted_denoiser_brings_the_victim_back() -> None:
    from defence_fakes import Ascent

    from firedoor.craft import Craft
    from firedoor.threat import Linf

    store, attack = DictStore(), Ascent(Linf(48 / 255))
    victim = Fixed(DATA)
    with seed.forked(0, "unet"):
        module = UNet(width=4, depth=1).build(DATA.shape, 0)
    loss = GuidedDenoising(victim, (victim,), attack, DATA)
    Fit(loss=loss, epochs=30, batch_size=20, lr=0.01, optimiser="adamw").train(module, DATA.split("target"), store, 0)
    x_adv = Craft(victim, attack, DATA, "evaluation").load(store).x
    z = victim.load(store)
    gap = (z(x_adv) - z(TEST.x)).abs().sum()
    denoised = (z(module(x_adv)) - z(TEST.x)).abs().sum()
    assert denoised < 0.5 * gap


class Says(nn.Module):
    """Logits that are written down: the same for every image, plus a little of its first pixel, so that it has a gradient."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + x.flatten(1)[:, :1] * self.logits / 100

    def load(self, store: object) -> Says:
        return self

    def relax(self) -> Says:
        return self


@pytest.mark.parametrize("threshold", [0.0, 1.5])
@pytest.mark.parametrize("alarm", [-200.0, -1.0, 0.0, 2.0, 200.0])
def test_gate_mixes_probabilities_by_its_alarm(alarm: float, threshold: float) -> None:
    calm, alert = Says(2.0, 0.0, -1.0), Says(-3.0, 1.0, 0.0)
    gate, store = Gate(alert, Says(alarm, 9.0, 9.0), threshold), DictStore()  # type: ignore[arg-type]
    x = torch.zeros(2, 1, 8, 8)
    p, q = calm.logits.softmax(0), alert.logits.softmax(0)
    share = 1 / (1 + math.exp(threshold - alarm))
    wrapped, relaxed = gate.wrap(calm, store), gate.relax(calm, store)
    torch.testing.assert_close(wrapped(x).exp(), ((1 - share) * p + share * q).expand(2, 3), rtol=1e-5, atol=1e-7)
    assert torch.isfinite(wrapped(x)).all()
    assert torch.equal(relaxed(x), wrapped(x))
    y = torch.zeros(2, dtype=torch.long)
    halves = lambda z: (calm(z).log_softmax(1) + alert(z).log_softmax(1)) / 2  # noqa: E731
    assert torch.autograd.functional.jacobian(relaxed, x).allclose(torch.autograd.functional.jacobian(halves, x))
    assert (gradient(relaxed, x, y) != 0).any(), "the alarm cannot hide either network"


def test_gate_needs_a_store_and_a_finite_threshold(model: nn.Module) -> None:
    for threshold in (math.inf, math.nan):
        with pytest.raises(SpecError, match="threshold must be finite, got"):
            Gate(Fixed(DATA, 7), Fixed(DATA, 8), threshold)
    for make in (Gate(Fixed(DATA, 7), Fixed(DATA, 8)).wrap, Gate(Fixed(DATA, 7), Fixed(DATA, 8)).relax):
        with pytest.raises(SpecError, match="Gate needs a store"):
            make(model)


def test_wrong_use_is_refused_with_a_remedy(model: nn.Module) -> None:
    flat = TEST.x.flatten(1)
    for wrapper in (JPEG(), Median(), Gaussian(), ResizePad()):
        with pytest.raises(DataError, match=r"needs images \(n, c, h, w\), got \(60, 64\)"):
            shown_to(wrapper, flat)
    with pytest.raises(DataError, match="1 or 3 channels, got 2"):
        shown_to(JPEG(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(ModelRefused, match=r"`\.members`.*Ensemble or Snapshots"):
        RandomMember().wrap(model.members[0])  # type: ignore[index,arg-type]
    with pytest.raises(SpecError, match="needs a store"):
        Denoiser(Cleaner()).wrap(model)
    makers = [
        lambda: JPEG(0), lambda: JPEG(75, "4:1:1"), lambda: BitDepth(0), lambda: BitDepth(2.5), lambda: Median(0), lambda: Gaussian(-1.0), lambda: Gaussian(1e9),
        lambda: Noise(-0.1), lambda: Noise(n=0), lambda: ResizePad(0.9, 0.8), lambda: ResizePad(n=0),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(SpecError, match="got"):
            make()  # type: ignore[no-untyped-call]
