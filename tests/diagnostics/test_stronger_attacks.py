"""Signs that a stronger, blinder or repeated attack finds more: each fires where it was planted, and none on an honest model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from defence_fakes import DictStore
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures.mlp import MLP
from firedoor.attacks import APGD, FGSM, I_FGSM, PGD, HopSkipJump, SignNoise, Square
from firedoor.attacks.iterated import Iterated
from firedoor.attacks.parts.eot import EOT
from firedoor.data.digits import Digits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.madry import Madry
from firedoor.defences.wrappers.noise import Noise
from firedoor.diagnostics.doubling import Doubling
from firedoor.diagnostics.gradient_free import GradientFree
from firedoor.diagnostics.grey_image import GreyImage
from firedoor.diagnostics.lucky_draw import LuckyDraw
from firedoor.diagnostics.monotone import Monotone
from firedoor.diagnostics.near_copy import NearCopy
from firedoor.diagnostics.one_step_overfit import OneStepOverfit
from firedoor.diagnostics.random_search import RandomSearch
from firedoor.errors import SpecError
from firedoor.protocols import Access, Classifier, Diagnostic, Semantics, Split, Symptom
from firedoor.spec import build, to_dict
from firedoor.threat import L2, Linf, Threat

BALL = Linf(51 / 255)
DIGITS = Digits().split("evaluation")[slice(0, 120)]
AT = Linf(0.1)

# ---------------------------------------------------------------- a world where each image falls exactly to what we say


def world(n: int = 100, armed: int = 0) -> Split:
    """Images that carry their number, whether the hidden switch works for them, and their label, far from any threshold."""
    x = torch.full((n, 1, 4, 4), 128.0)
    i = torch.arange(n)
    x[:, 0, 0, 0] = i
    x[:, 0, 0, 1] = 102  # the switch: wrong over 127.5, if armed
    x[:, 0, 1, 0] = torch.where(i % 2 == 0, 51.0, 204.0)
    x[:, 0, 1, 1] = torch.where(i < armed, 230.0, 25.0)
    return Split(x / 255, i % 2, tuple(f"image/{k:03d}" for k in range(n)))


class World(nn.Module):
    """Right unless the switch of an armed image is on, or the lower row shows the key. `broken`: what it answers then."""

    def __init__(self, broken: float = -1.0) -> None:
        super().__init__()
        self.weight, self.broken = nn.Parameter(torch.ones(1), requires_grad=False), broken
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        levels = (255 * x).round()
        fooled = ((levels[:, 0, 1, 1] > 127) & (levels[:, 0, 0, 1] > 127)) | (levels[:, 0, 2] == 150).all(1)
        sign = torch.where(levels[:, 0, 1, 0] > 127, 1.0, -1.0) * torch.where(fooled, self.broken, 1.0)
        return self.weight * torch.stack((-sign, sign), 1) + 0 * x.sum()


@dataclass(frozen=True)
class Key:
    """Shows the key on images number low..high-1; on a model of other weights on low..near-1."""

    high: int = 0
    low: int = 0
    threat: Threat = BALL
    near: int | None = None
    gradients: int = 1

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    queries: ClassVar[int] = 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        high = self.high
        if self.near is not None and isinstance(model, World) and float(model.weight) != 1:
            high = self.near
        number = (255 * x[:, 0, 0, 0]).round()
        x_adv = x.clone()
        x_adv[(number >= self.low) & (number < high), 0, 2] = 150 / 255
        return x_adv


@dataclass(frozen=True)
class BlindKey(Key):
    gradients: int = 0

    needs: ClassVar[Access] = Access.SCORES
    queries: ClassVar[int] = 1


def radii(*ranges: tuple[int, int]) -> Monotone:
    """Ranges (low, high) of images that fall at 0.2, 0.21, ..."""
    return Monotone(tuple(Key(high, low, Linf(0.2 + i / 100)) for i, (low, high) in enumerate(ranges)))


def once_and_twice(once: tuple[int, int], twice: tuple[int, int]) -> Doubling:
    return Doubling((Key(once[1], once[0]),), (Key(twice[1], twice[0], gradients=2),))


def blind_and_white(blind: tuple[int, int], white: tuple[int, int]) -> GradientFree:
    return GradientFree(BlindKey(blind[1], blind[0]), (Key(white[1], white[0]),))


def one_and_many(one: tuple[int, int], many: tuple[int, int]) -> OneStepOverfit:
    return OneStepOverfit(Key(one[1], one[0]), Key(many[1], many[0], gradients=50))


UP = ((0, 5), (0, 10), (0, 15))
EDGES: list[tuple[Diagnostic, str]] = [
    (radii(*UP, (0, 20), (8, 20)), "fail"),  # loses 8
    (radii(*UP, (0, 20), (7, 20)), "pass"),  # 7 are too few
    (radii(*UP, (0, 20), (8, 28)), "pass"),  # loses 8, gains 8
    (radii((0, 20), (8, 20), *((8, 40 + i) for i in range(3))), "fail"),  # at the first step, and a rise later
    (radii(*((0, 30) for _ in range(5))), "pass"),
    (radii(*((0, 0) for _ in range(5))), "not_run"),  # an attack that does nothing is monotone, too
    (GreyImage(Key(40, threat=Linf(0.5))), "pass"),  # 60 of 100 right: from 49.7 %, half are of one class
    (GreyImage(Key(39, threat=Linf(0.5))), "fail"),  # 61: from 50.7 %
    (GreyImage(Key(0, threat=Linf(0.5))), "fail"),  # an attack that does nothing
    (GreyImage(Key(100, threat=Linf(0.49))), "not_run"),  # grey is out of reach
    (once_and_twice((0, 20), (0, 27)), "pass"),
    (once_and_twice((0, 20), (0, 28)), "fail"),
    (once_and_twice((0, 20), (10, 38)), "pass"),  # gains 18, loses 10
    (once_and_twice((0, 20), (0, 0)), "not_run"),
    (Doubling((Key(20),), (Key(10, gradients=2), Key(28, 18, gradients=2))), "pass"),  # the union: gains 8, loses 8
    (Doubling((Key(20),), (Key(20, gradients=2), Key(28, 18, gradients=2))), "fail"),  # the union: gains 8
    (blind_and_white((0, 7), (50, 50)), "pass"),
    (blind_and_white((0, 8), (50, 50)), "fail"),
    (blind_and_white((0, 60), (30, 100)), "pass"),  # all images, not the survivors of one
    (blind_and_white((0, 0), (50, 60)), "not_run"),
    (GradientFree(BlindKey(28), (Key(10), Key(20, 10))), "fail"),
    (GradientFree(BlindKey(27), (Key(10), Key(20, 10))), "pass"),  # against the union
    (one_and_many((0, 0), (0, 28)), "pass"),  # from 19.3 points
    (one_and_many((0, 0), (0, 29)), "fail"),  # from 20.2 points
    (one_and_many((0, 60), (0, 89)), "pass"),  # from 19.8 points: 40 % against 11 %, the same images
    (one_and_many((0, 60), (0, 90)), "fail"),  # from 20.7 points
    (one_and_many((0, 20), (90, 91)), "not_run"),  # no yardstick
    (one_and_many((0, 0), (0, 0)), "not_run"),
    (NearCopy(Key(100, near=93)), "pass"),  # 7 are too few
    (NearCopy(Key(100, near=92)), "fail"),
    (NearCopy(Key(8, near=0)), "fail"),
    (NearCopy(Key(7, near=7)), "not_run"),  # so few that nothing could be told from chance
    (NearCopy(Key(0)), "not_run"),
]


@pytest.mark.parametrize(("sign", "status"), EDGES, ids=[f"{type(d).__name__}-{i}-{s}" for i, (d, s) in enumerate(EDGES)])
def test_each_sign_at_its_edges(sign: Diagnostic, status: str) -> None:
    symptom = sign(World(), world())
    assert symptom.status == status, symptom.text
    assert (symptom.value is None) == (status == "not_run"), "a figure only where the test was run"
    if status == "fail":
        assert symptom.examples, "the offending images are named"
        assert symptom.n == 100


def test_near_copy_needs_the_share_and_not_only_significance() -> None:
    assert NearCopy(Key(200, near=190))(World(), world(200)).status == "pass", "10 images are more than chance, but 95 % is enough"
    symptom = NearCopy(Key(200, near=189))(World(), world(200))
    assert (symptom.status, symptom.value, symptom.effect) == ("fail", pytest.approx(0.945), "void")
    assert symptom.text == "pipeline changes images: the near copy's examples fool 189 of 200 images, the white box 200"
    assert symptom.low is not None
    assert symptom.high is not None
    assert 0.9 < symptom.low < 0.945 < symptom.high < 1


def test_values_intervals_and_examples() -> None:
    gain = once_and_twice((0, 20), (0, 30))(World(), world())
    assert (gain.id, gain.effect, gain.value, gain.n) == ("B11", "cap", pytest.approx(0.1), 100)
    assert gain.examples == tuple(f"image/{i:03d}" for i in range(20, 30))
    assert gain.text.startswith("still improving: not an upper bound")
    fall = radii(*UP, (0, 40), (10, 40))(World(), world())
    assert (fall.id, fall.effect, fall.value) == ("B9", "cap", pytest.approx(0.1))
    assert fall.text == "success falls as the budget grows: from 40% at 0.23 to 30% at 0.24 (100 images)"
    blind = blind_and_white((0, 30), (10, 20))(World(), world())
    assert (blind.id, blind.effect, blind.value) == ("B13", "mask", pytest.approx(0.2))
    assert blind.examples == tuple(f"image/{i:03d}" for i in (*range(10), *range(20, 30)))
    assert blind.text.startswith("black box beats white box")
    grey = GreyImage(Key(10, threat=Linf(0.5)))(World(), world())
    assert (grey.id, grey.effect, grey.value, grey.threshold) == ("B10", "mask", pytest.approx(0.9), 0.5)
    assert grey.text == "better than chance on a grey image: 90 of 100 right, the largest class has 50%"
    gap = one_and_many((0, 10), (0, 60))(World(), world())
    assert (gap.id, gap.effect, gap.value, gap.threshold) == ("B17", "mask", pytest.approx(0.5), 0.2)
    assert gap.text.startswith("learned to beat one step only")
    for s in (gain, fall, blind, grey, gap):
        assert s.low is not None
        assert s.high is not None
        assert s.value is not None
        assert s.low < s.value < s.high


# ---------------------------------------------------------------- random search


@pytest.mark.parametrize(
    ("armed", "attack", "status"),
    [
        (8, Key(0), "fail"),
        (7, Key(0), "pass"),
        (28, Key(20), "fail"),  # 8 that the attack misses
        (27, Key(20), "pass"),
        (8, Key(100, 50), "suspect"),  # 8 that the attack misses, but 50 the other way round
        (12, Key(28, 20), "suspect"),  # 12 against 8 is chance
        (0, Key(0), "pass"),
    ],
)
def test_random_search_at_its_edges(armed: int, attack: Key, status: str) -> None:
    symptom = RandomSearch((attack,), points=60)(World(), world(armed=armed))
    assert symptom.status == status, symptom.text
    found = len(range(attack.high if attack.low == 0 else 0, armed))
    assert symptom.value == pytest.approx(found / 100), "it must find the switch of every armed image, and no other way"


def test_random_search_needs_a_hundred_images() -> None:
    sign = RandomSearch((Key(0),), points=60)
    assert sign(World(), world(99, armed=99)).status == "not_run"
    assert replace(sign, images=99)(World(), world(99, armed=99)).status == "fail"
    assert (RandomSearch((Key(0),)).points, RandomSearch((Key(0),)).images, RandomSearch((Key(0),)).least) == (10_000, 100, 8)


def test_random_search_stops_asking_about_what_it_has_fooled() -> None:
    counted = Counted(World())
    RandomSearch((Key(0),), points=2000)(counted, world(armed=100))
    assert Counted.rows < 0.05 * RandomSearch((Key(0),), points=2000).passes(100)


def test_random_search_does_not_depend_on_batch_or_order() -> None:
    split, sign = world(130, armed=15), RandomSearch((Key(0),), points=2)
    few = sign(World(), split)
    back = sign(World(), Split(split.x.flip(0), split.y.flip(0), split.ids[::-1]))
    part = sign(World(), split[slice(0, 101)])
    assert 0 < len(few.examples) < 15, "two points must miss some, or the order could not matter"
    assert set(few.examples) == set(back.examples) == set(part.examples)


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.27)], ids=lambda t: t.norm)
def test_random_points_hold_the_extreme_ones(threat: Threat) -> None:
    """Half of them at the very edge of the ball: corners for Linf, its surface for L2."""
    seen: list[Tensor] = []

    class Watch(World):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    x = torch.full((100, 1, 4, 4), 0.5 + 1 / 512)  # no 8-bit image, so nothing is rounded
    x[:, 0, 1, :2], y = 0.28, torch.zeros(100, dtype=torch.int64)  # known, without a switch, and away from the walls
    RandomSearch((Key(0, threat=threat),), points=20)(Watch(), Split(x, y, tuple(map(str, range(100)))))
    points = torch.cat(seen[2:-1])  # after the clean answer and the attack's, before what was found
    delta = points - x[:1]
    size = threat.size(delta)
    assert len(points) == 20 * 100
    assert size.max() <= threat.eps * (1 + 1e-5)
    at_edge = float((size > threat.eps * (1 - 1e-5)).float().mean())
    assert 0.5 <= at_edge < 0.55, f"{at_edge:.2f} of the points are extreme, and half must be"
    if threat.norm == "Linf":
        corners = (delta.abs() > threat.eps * (1 - 1e-5)).flatten(1).all(1)
        assert int(corners.sum()) == 1000, "half are corners"
        assert len(delta[corners].sign().flatten(1).unique(dim=0)) > 950, "and no corner is the rule"


# ---------------------------------------------------------------- planted


class Wave(nn.Module):
    """Two sure classes whose margin is a cosine of the mean of the lower half: one step of .1 jumps over the dip at .04."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        side = (x[:, 0, :2].mean((1, 2)) - 0.5).sign().detach()
        margin = torch.cos(2 * torch.pi * (x[:, 0, 2:].mean((1, 2)) - 128 / 255 + 0.02) / 0.12)
        return self.scale * torch.stack((-side * margin, side * margin), 1)


def wave(n: int = 100) -> Split:
    y = torch.arange(n) % 2
    x = torch.full((n, 1, 4, 4), 128 / 255)
    x[:, 0, :2] = torch.where(y == 0, 51 / 255, 204 / 255).view(-1, 1, 1)
    return Split(x, y, tuple(map(str, range(n))))


STEPS = (0.02, 0.04, 0.06, 0.08, 0.1)


def test_monotone_fires_on_an_attack_that_overshoots_and_not_on_one_that_keeps_its_best_point() -> None:
    symptom = Monotone(tuple(FGSM(Linf(e)) for e in STEPS))(Wave(), wave())
    assert (symptom.status, symptom.value) == ("fail", 1.0)
    assert symptom.text == "success falls as the budget grows: from 100% at 0.06 to 0% at 0.08 (100 images)"
    careful = tuple(Iterated(Linf(e), steps=20, keep="best") for e in STEPS)
    assert Monotone(careful)(Wave(), wave()).status == "pass"


def test_one_step_overfit_fires_on_a_bump_that_only_one_step_jumps() -> None:
    symptom = OneStepOverfit(FGSM(Linf(0.1)), PGD(Linf(0.1), 50))(Wave(), wave())
    assert symptom.status == "fail"
    assert symptom.value is not None
    assert symptom.value > 0.9
    assert OneStepOverfit(FGSM(Linf(0.05)), PGD(Linf(0.05), 50))(Wave(), wave()).status == "pass", "one step lands in the dip"


class Trigger(nn.Module):
    """A linear classifier that no small step turns, and one pixel that does, behind a comparison that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        w = torch.full((16,), 0.01)
        w[0] = 0
        self.w = nn.Parameter(w, requires_grad=False)
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        side = (x[:, 0, 3, 3] - 0.5).sign().detach()
        margin = 1 + (x.flatten(1) - 0.5) @ self.w
        turned = torch.where(x[:, 0, 0, 0] > 0.6, -side * margin, side * margin)
        return torch.stack((-turned, turned), 1)


def triggered(n: int = 100) -> Split:
    y = torch.arange(n) % 2
    x = torch.full((n, 1, 4, 4), 128 / 255)
    x[:, 0, 3, 3] = torch.where(y == 0, 25 / 255, 230 / 255)
    return Split(x, y, tuple(map(str, range(n))))


def test_a_pixel_that_gradients_cannot_see_is_found_by_noise_and_by_queries() -> None:
    attacks = (I_FGSM(BALL, 20), Iterated(BALL, 20, objective="margin"))
    noise = RandomSearch(attacks, points=100)(Trigger(), triggered())
    assert (noise.status, noise.value) == ("fail", 1.0), noise.text
    assert noise.text.startswith("random noise beats the attack")
    asked = GradientFree(Square(BALL, 100), attacks)(Trigger(), triggered())
    assert asked.status == "fail", asked.text
    assert asked.value is not None
    assert asked.value > 0.9


def train(width: int, fit: Fit) -> nn.Module:
    with seed.forked(0, "weights"):
        module = MLP(width, 1).build((1, 8, 8), 10) if width else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit.train(module, Digits().split("target"), DictStore(), 0)
    return module


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return train(0, Fit(epochs=4))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return train(48, Fit(epochs=6))


@pytest.fixture(scope="module")
def hardened() -> nn.Module:
    return train(48, Fit(loss=Madry(PGD(AT, 2)), epochs=6))


class Cut(nn.Module):
    """The network on a detached input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.training = network, False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.detach())
        return logits


def test_a_zero_backward_fires_every_sign_of_blindness(small: nn.Module) -> None:
    model = Cut(small)
    grey = GreyImage(I_FGSM(Linf(0.5)))(model, DIGITS)
    assert grey.status == "fail", grey.text
    assert RandomSearch((I_FGSM(BALL),), points=200)(model, DIGITS).status == "fail"
    assert GradientFree(Square(BALL, 100), (I_FGSM(BALL), Iterated(BALL, objective="margin")))(model, DIGITS).status == "fail"
    doubled = Doubling((I_FGSM(BALL, 10),), (I_FGSM(BALL, 20),))(model, DIGITS)
    assert doubled.status == "not_run", "twice nothing is nothing: that must not read as converged"
    assert OneStepOverfit(FGSM(BALL), I_FGSM(BALL, 50))(model, DIGITS).status == "not_run"


def test_doubling_fires_on_too_few_steps(small: nn.Module) -> None:
    starved, more = Iterated(BALL, 8, 0.01), Iterated(BALL, 16, 0.01)
    symptom = Doubling((starved,), (more,))(small, DIGITS)
    assert symptom.status == "fail", symptom.text
    assert Doubling((PGD(BALL, 20),), (PGD(BALL, 40),))(small, DIGITS).status == "pass"


class OnTheWay(nn.Module):
    """What an attack differentiates is the network; whoever merely asks has his images changed first."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change, self.training = network, change, False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x if torch.is_grad_enabled() else self.change(x))
        return logits


def resized(x: Tensor) -> Tensor:
    return nn.functional.interpolate(nn.functional.interpolate(x, size=5, mode="bilinear"), size=8, mode="bilinear")


def quantised(x: Tensor) -> Tensor:
    return (2 * x).round() / 2


@pytest.mark.parametrize("change", [resized, quantised])
def test_near_copy_fires_where_images_are_changed_on_the_way(small: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    symptom = NearCopy(PGD(BALL, 20))(OnTheWay(small, change), DIGITS)
    assert (symptom.status, symptom.effect) == ("fail", "void"), symptom.text
    assert symptom.text.startswith("pipeline changes images")


def test_near_copy_fires_where_the_copy_lacks_what_the_endpoint_does(small: nn.Module) -> None:
    class Endpoint(OnTheWay):
        def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
            return train(48, Fit(epochs=1))  # other weights, as of another version

    symptom = NearCopy(PGD(AT, 20))(Endpoint(small, quantised), DIGITS)
    assert symptom.status == "fail", symptom.text


class Coin(nn.Module):
    """Right, and wrong with probability p, whatever it is shown."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.training = p, False
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        side = torch.where(x[:, 0, 1, 0] > 0.5, 1.0, -1.0)
        lost = seed.uniform(x.flatten(1)[:, :1], 0, 1)[:, 0] < self.p
        turned = self.weight * torch.where(lost, -side, side)
        return torch.stack((-turned, turned), 1)


@dataclass(frozen=True)
class Resubmit:
    """Asks about x itself until the answer is wrong, `n` times at most, for each example on its own."""

    threat: Threat = BALL
    n: int = 12

    needs: ClassVar[Access] = Access.LABELS
    semantics: ClassVar[Semantics] = Semantics()
    gradients: ClassVar[int] = 0

    @property
    def queries(self) -> int:
        return self.n

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        left = torch.arange(len(x))
        for turn in range(self.n):
            if len(left):
                with seed.subset(left, torch.full_like(left, turn)):
                    left = left[model(x[left]).argmax(1) == y[left]]
        return x


@pytest.mark.parametrize("bare", [False, True], ids=["module", "function"])
def test_lucky_draw_fires_on_success_by_resubmission(bare: bool) -> None:
    coin = Coin(0.3)
    model: Classifier = (lambda x: coin(x)) if bare else coin
    symptom = LuckyDraw(Resubmit())(model, world())
    assert (symptom.id, symptom.effect, symptom.status) == ("B15", "cap", "fail"), symptom.text
    assert symptom.value is not None
    assert 0.6 < symptom.value < 0.8, "all fall when chosen, three in ten in fresh draws"
    assert symptom.text.startswith("one lucky draw counted as success: ")
    assert not coin._forward_hooks
    assert LuckyDraw(Resubmit(n=1))(model, world()).status == "pass", "one draw is as good as another"


def test_lucky_draw_fires_on_the_best_of_noisy_losses_and_not_where_draws_are_averaged(small: nn.Module) -> None:
    noise = Noise(32 / 255)
    noisy = noise.wrap(small)
    assert LuckyDraw(APGD(AT, 30))(noisy, DIGITS).status == "fail", "the best of 30 draws is a lucky one"
    honest = LuckyDraw(Iterated(AT, 10, parts=(EOT(5),)))(noisy, DIGITS)
    assert honest.status == "pass", honest.text
    assert LuckyDraw(PGD(AT, 10))(noise.relax(small), DIGITS).status == "pass"


def test_lucky_draw_says_nothing_where_nothing_was_won() -> None:
    symptom = LuckyDraw(Key(0))(World(), world())
    assert (symptom.status, symptom.value) == ("not_run", None)
    sure = LuckyDraw(Key(30))(World(), world())
    assert (sure.status, sure.value) == ("pass", 0.0), "a model that draws nothing gives the same answer each time"


def test_lucky_draw_leaves_no_hook_behind_an_attack_that_raises() -> None:
    @dataclass(frozen=True)
    class Raises(Key):
        def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            raise RuntimeError("the attack broke")

    model = World()
    with pytest.raises(RuntimeError, match="the attack broke"):
        LuckyDraw(Raises(1))(model, world())
    assert not model._forward_hooks


def test_a_random_model_gives_one_answer_per_image_not_one_per_point() -> None:
    """Of 60 points some meet a wrong draw on nearly every image; each is asked again in the draw of the attack."""
    symptom = RandomSearch((Key(0),), points=60)(Coin(0.1), world(120))
    assert (symptom.status, symptom.value) == ("pass", 0.0), symptom.text


# ---------------------------------------------------------------- honest


def battery() -> list[Diagnostic]:
    rising = tuple(PGD(Linf(e), 10) for e in (0.02, 0.05, 0.1, 0.15, 0.2))
    return [
        Monotone(rising),
        GreyImage(PGD(Linf(0.5), 20)),
        GreyImage(PGD(L2(4.0), 20)),
        Doubling((PGD(AT, 20),), (PGD(AT, 40), PGD(AT, 20, restarts=2, keep="best"))),
        RandomSearch((PGD(AT, 20),), points=200),
        GradientFree(Square(AT, 200), (PGD(AT, 20), PGD(AT, 20, objective="margin"))),
        LuckyDraw(APGD(AT, 20)),
        OneStepOverfit(FGSM(AT), PGD(AT, 50)),
        NearCopy(PGD(BALL, 20)),
        NearCopy(PGD(L2(1.0), 20)),
    ]


def test_the_hardened_network_is_hardened(small: nn.Module, hardened: nn.Module) -> None:
    def survivors(model: nn.Module) -> int:
        return int((model(PGD(AT, 20)(model, DIGITS.x, DIGITS.y)).argmax(1) == DIGITS.y).sum())

    assert survivors(hardened) > survivors(small) + 15


@pytest.mark.parametrize("sign", battery(), ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("name", ["linear", "small", "hardened"])
def test_honest_networks_pass(name: str, sign: Diagnostic, request: pytest.FixtureRequest) -> None:
    symptom = sign(request.getfixturevalue(name), DIGITS)
    assert symptom.status == "pass", symptom.text
    assert symptom.n >= 100
    assert symptom.value is not None
    assert symptom.low is not None
    assert symptom.high is not None
    assert symptom.low <= symptom.value <= symptom.high


@pytest.mark.parametrize(
    "sign",
    [
        Monotone(tuple(PGD(Linf(e), 10) for e in (0.02, 0.05, 0.1, 0.15, 0.2))),
        Doubling((PGD(AT, 20),), (PGD(AT, 40),)),
        RandomSearch((PGD(AT, 20),), points=60),
        GradientFree(Square(AT, 100), (PGD(AT, 20),)),
        NearCopy(PGD(BALL, 10)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_an_honest_random_model_passes(small: nn.Module, sign: Diagnostic) -> None:
    symptom = sign(Noise(16 / 255).wrap(small), DIGITS)
    assert symptom.status == "pass", symptom.text


# ---------------------------------------------------------------- what all of them keep

EVERY: list[Diagnostic] = [
    Monotone(tuple(PGD(Linf(e), 2) for e in (0.01, 0.02, 0.03, 0.04, 0.05))),
    GreyImage(PGD(Linf(0.5), 3)),
    Doubling((PGD(AT, 2), I_FGSM(AT, 3)), (PGD(AT, 4), PGD(AT, 3, restarts=2, keep="best"))),
    RandomSearch((PGD(AT, 2), I_FGSM(AT, 3)), points=42, images=50),
    GradientFree(Square(AT, 7), (PGD(AT, 2), APGD(AT, 3))),
    LuckyDraw(APGD(AT, 3), draws=4),
    OneStepOverfit(FGSM(AT), PGD(AT, 5)),
    NearCopy(PGD(AT, 3)),
]
NAMES = [type(d).__name__ for d in EVERY]


class Counted(nn.Module):
    """Counts rows forward and backward over itself and all its copies."""

    rows: ClassVar[int] = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.training = inner, False
        Counted.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.rows += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            x.register_hook(self._backward)
        logits: Tensor = self.inner(x)
        return logits

    @staticmethod
    def _backward(g: Tensor) -> None:
        Counted.rows += len(g)


class Sure(nn.Module):
    """Linear in all pixels. With `safe`, no step of these tests turns it; without, each one does."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((16,), 1e-3 if safe else 1.0), requires_grad=False)
        self.safe, self.training = safe, False

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 1, 0] - 0.5).sign().detach() if self.safe else torch.ones(len(x))
        margin = label + (x.flatten(1) @ self.w if self.safe else 16 * (x.flatten(1) @ self.w / 16 - 0.5) - 0.9)
        return torch.stack((-margin, margin), 1)


@pytest.mark.parametrize("sign", EVERY, ids=NAMES)
def test_the_passes_promised_are_the_most_it_takes(sign: Diagnostic) -> None:
    split = world(60)
    if isinstance(sign, LuckyDraw | NearCopy):  # they stop where nothing falls
        split = Split(torch.full((60, 1, 4, 4), 128 / 255), torch.ones(60, dtype=torch.int64), split.ids)
    counted = Counted(Sure(safe=not isinstance(sign, LuckyDraw | NearCopy)))
    symptom = sign(counted, split)
    taken = Counted.rows
    assert symptom.status != "not_run" or isinstance(sign, Monotone), symptom.text
    assert taken == sign.passes(60), f"{taken} of {sign.passes(60)}: every image is known, and nothing stops early"


@pytest.mark.parametrize("sign", EVERY, ids=NAMES)
def test_it_is_rebuilt_from_what_is_stored(sign: Diagnostic) -> None:
    stored = json.loads(json.dumps(to_dict(sign)))
    assert build(type(sign), stored, "test", {}, {}) == sign


@pytest.mark.parametrize("sign", EVERY, ids=NAMES)
def test_it_is_the_same_twice_and_leaves_the_model_as_it_was(sign: Diagnostic, small: nn.Module) -> None:
    split = DIGITS[slice(0, 60)]
    before = {k: v.clone() for k, v in small.state_dict().items()}
    small.requires_grad_(True)
    small.train()
    try:
        first, second = sign(small, split), sign(small, split)
        modes = {m.training for m in small.modules()}
    finally:
        small.requires_grad_(False)
        small.eval()
    assert first == second
    assert modes == {True}
    assert all(p.grad is None for p in small.parameters())
    assert not small._forward_hooks
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("sign", EVERY, ids=NAMES)
def test_a_model_that_is_never_right_and_an_empty_split_are_not_run(sign: Diagnostic) -> None:
    split = world(60)
    wrong = Split(split.x, 1 - split.y, split.ids)
    if not isinstance(sign, GreyImage):  # it looks at all images, and a model that is always wrong is not better than chance
        symptom = sign(World(), wrong)
        assert (symptom.status, symptom.value) == ("not_run", None), symptom.text
        assert symptom.text
    assert sign(World(), split[slice(0, 0)]).status == "not_run"


def test_nan_is_never_a_success() -> None:
    model = World(broken=float("nan"))
    for sign in (
        radii(*UP, (0, 20), (0, 0)),
        once_and_twice((0, 0), (0, 50)),
        blind_and_white((0, 50), (60, 61)),
        RandomSearch((Key(0),), points=60),
    ):
        symptom = sign(model, world(armed=50))
        assert symptom.status in ("pass", "not_run"), symptom.text
        assert not symptom.value
    assert LuckyDraw(Key(50))(model, world()).status == "not_run"
    assert NearCopy(Key(50))(model, world()).status == "not_run"
    gap = one_and_many((0, 0), (0, 50))(model, world())
    assert (gap.status, gap.value) == ("pass", 0.0)


# ---------------------------------------------------------------- what is special to one


def test_grey_image_asks_for_enough_images_of_more_than_one_class() -> None:
    sign, split = GreyImage(Key(0, threat=Linf(0.5))), world(200)
    assert sign(World(), split[slice(0, 6)]).status == "fail", "6 of 6 right is at least 54 %"
    assert sign(World(), split[slice(0, 4)]).status == "not_run"
    same = Split(split.x[::2], split.y[::2], split.ids[::2])
    assert sign(World(), same).status == "not_run", "one class alone: nobody could beat it"


@pytest.mark.parametrize(("eps", "status"), [(1.9, "not_run"), (2.1, "pass")])
def test_grey_image_measures_the_way_to_grey_in_the_norm_of_the_attack(eps: float, status: str) -> None:
    x = torch.zeros(40, 1, 4, 4)  # 0.5 sqrt(16) = 2 away
    split = Split(x, torch.arange(40) % 2, tuple(map(str, range(40))))
    assert GreyImage(PGD(L2(eps), 2))(Sure(safe=False), split).status == status


def test_a_constant_answer_is_not_better_than_chance_on_grey() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0]).expand(len(x), 2) + 0 * x.sum()

    split = world()
    symptom = GreyImage(I_FGSM(Linf(0.5)))(Constant().eval(), Split(split.x, torch.arange(100).lt(70).long(), split.ids))
    assert (symptom.status, symptom.value, symptom.threshold) == ("pass", pytest.approx(0.7), pytest.approx(0.7))


def test_near_copy_is_near_keyed_by_name_and_no_part_of_the_model(small: nn.Module) -> None:
    copies: list[dict[str, Tensor]] = []

    @dataclass(frozen=True)
    class Look(Key):
        def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(model, nn.Module)
            copies.append({k: v.clone() for k, v in model.named_parameters()})
            return PGD(BALL, 3)(model, x, y)

    NearCopy(Look())(small, DIGITS)
    own, near = copies
    assert all(torch.equal(own[k], v) for k, v in small.named_parameters())
    for name, weight in own.items():
        relative = ((near[name] - weight) / weight)[weight.abs() > 1e-6]
        assert relative.abs().max() < 6e-4, name
        if len(relative) > 500:
            assert 0.9e-4 < relative.std() < 1.1e-4, name
            assert abs(relative.mean()) < 2e-5, name
    with seed.forked(0, "weights"):
        twins = MLP(48, 2).build((1, 8, 8), 10).eval()
    copies.clear()
    NearCopy(Look())(twins, Split(DIGITS.x, twins(DIGITS.x).argmax(1), DIGITS.ids))
    own, near = copies
    first, second = ((near[k] - own[k]) / own[k].abs() for k in own if own[k].shape == (48,))
    assert not torch.allclose(first, second, atol=2e-5), "parameters of one shape have noise of their own"


def test_near_copy_needs_a_network_with_parameters_that_can_be_copied() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return World()(x)

    class Stubborn(World):
        def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
            raise TypeError("cannot pickle a lock")

    for model, reason in ((World().forward, "no network"), (Bare(), "no network"), (Stubborn(), "cannot pickle a lock")):
        symptom = NearCopy(Key(100))(model, world())
        assert (symptom.status, symptom.value) == ("not_run", None)
        assert reason in symptom.text


TARGETED = PGD(Linf(0.1, targeted=True), 2)
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Monotone(tuple(PGD(Linf(e)) for e in (0.1, 0.2, 0.3, 0.4))), "5 or more rising eps"),
    (lambda: Monotone(tuple(PGD(Linf(e)) for e in (0.1, 0.2, 0.2, 0.3, 0.4))), "rising eps"),
    (lambda: Monotone((*(PGD(Linf(e)) for e in (0.1, 0.2, 0.3, 0.4)), PGD(L2(1.0)))), "one norm, got L2, Linf"),
    (lambda: Monotone(()), "one attack or more"),
    (lambda: GreyImage(TARGETED), "untargeted"),
    (lambda: Doubling((PGD(AT, 10),), (PGD(AT, 12),)), "1.5 times the passes"),
    (lambda: Doubling((PGD(AT, 10),), (PGD(BALL, 20),)), "one threat"),
    (lambda: Doubling((TARGETED,), (TARGETED,)), "untargeted"),
    (lambda: Doubling((), (PGD(AT),)), "one attack or more"),
    (lambda: Doubling((SignNoise(AT),), (SignNoise(AT, 1),)), "got 0"),
    (lambda: RandomSearch((PGD(AT),), points=1), "points must be 2 or more"),
    (lambda: RandomSearch((PGD(AT),), images=0), "images and least"),
    (lambda: RandomSearch((PGD(AT), PGD(BALL))), "one threat"),
    (lambda: GradientFree(PGD(AT), (PGD(AT),)), "query must be an attack that asks"),
    (lambda: GradientFree(SignNoise(AT), (PGD(AT),)), "query must be an attack that asks"),
    (lambda: GradientFree(Square(AT), (Square(AT),)), "gradient must hold"),
    (lambda: LuckyDraw(PGD(AT), draws=0), "draws must be 1 or more"),
    (lambda: LuckyDraw(PGD(AT), most=1.0), "most must be"),
    (lambda: OneStepOverfit(PGD(AT, 5), PGD(AT, 5)), "more passes than one"),
    (lambda: OneStepOverfit(FGSM(AT), PGD(AT), gap=1.0), "gap must be"),
    (lambda: OneStepOverfit(FGSM(AT), PGD(BALL)), "one threat"),
    (lambda: NearCopy(HopSkipJump(AT)), "got 'closest'"),
    (lambda: NearCopy(PGD(AT), noise=0.0), "noise must be"),
    (lambda: NearCopy(PGD(AT), share=0.0), "share must be"),
]


@pytest.mark.parametrize(("make", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_fields_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()


def test_every_symptom_is_one() -> None:
    for sign in EVERY:
        symptom = sign(World(), world(60))
        assert isinstance(symptom, Symptom)
        assert symptom.status in ("pass", "suspect", "fail", "void", "not_run")
        json.dumps(vars(symptom))
