"""Signs that an attack is not what it seems: each fires where it was planted, at its exact mark, and none on an honest model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from defence_fakes import DictStore
from torch import Tensor, nn

from firedoor.architectures.mlp import MLP
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.attacks import APGD_CE, FGSM, I_FGSM, PGD, DeepFool
from firedoor.attacks.iterated import Iterated
from firedoor.attacks.parts.diverse_inputs import DiverseInputs
from firedoor.attacks.parts.eot import EOT
from firedoor.contracts.counting import counted
from firedoor.data.digits import Digits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.madry import Madry
from firedoor.defences.wrappers.noise import Noise
from firedoor.diagnostics.convergence import Convergence
from firedoor.diagnostics.finite import Finite
from firedoor.diagnostics.one_step import OneStepBeatsMany
from firedoor.diagnostics.rounding import Rounding
from firedoor.diagnostics.silent_success import SilentSuccess
from firedoor.diagnostics.unstable_loss import UnstableLoss
from firedoor.errors import BudgetError, SpecError
from firedoor.intervals import clopper_pearson
from firedoor.models.trained import Trained
from firedoor.protocols import Access, Classifier, Diagnostic, Semantics, Split, Symptom
from firedoor.spec import from_value, to_dict
from firedoor.threat import L0, L1, L2, Linf

BALL = Linf(20 / 255)
DATA = Digits()
DIGITS = DATA.split("evaluation")[slice(0, 120)]

# ---------------------------------------------------------------- worlds with a known answer


def grey(n: int = 20, level: int = 128, side: int = 4) -> Split:
    """n images of one grey level, all of class 0."""
    return Split(
        torch.full((n, 1, side, side), level / 255), torch.zeros(n, dtype=torch.int64), tuple(f"g{i:03d}" for i in range(n))
    )


def two_kinds(first: int, n: int = 20) -> Split:
    """The `first` images are dark, the others bright; all of class 0. Further apart than any budget here."""
    split = grey(n)
    split.x[:] = torch.where(torch.arange(n) < first, 60 / 255, 180 / 255).view(-1, 1, 1, 1)
    return split


class ByBrightness(nn.Module):
    """Two classes; class 1 leads by `score` of the mean pixel (or of all pixels): wrong where it is positive."""

    def __init__(self, score: Callable[[Tensor], Tensor], whole: bool = False) -> None:
        super().__init__()
        self.score, self.whole = score, whole
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        lead = self.score(x if self.whole else x.flatten(1).double().mean(1))
        return torch.stack((torch.zeros_like(lead), lead), dim=1)


def ramp(slope: float = 1.0, at: float = 200 / 255) -> nn.Module:
    """Class 1 leads by slope (mean - at): linear, and its best point within eps is known."""
    return ByBrightness(lambda m: slope * (m - at))


@dataclass(frozen=True)
class Walk:
    """Asks about x + share * eps at each of `shares` in turn, and returns the point of the last one, or of `returns`.

    The first `late` examples walk along `others` instead. With `asks` false the model is not asked.
    """

    shares: tuple[float, ...] = (0.0, 1.0)
    returns: float | None = None
    others: tuple[float, ...] = ()
    late: int = 0
    asks: bool = True
    threat: Any = BALL
    gradients: int = 1

    needs: ClassVar[Access] = Access.SCORES
    semantics: ClassVar[Semantics] = Semantics()

    @property
    def queries(self) -> int:
        return len(self.shares)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.zeros(len(x), len(self.shares)) + torch.tensor(self.shares)
        if self.late:
            rows[: self.late] = torch.tensor(self.others)
        points = [x + self.threat.eps * share.view(-1, *[1] * (x.dim() - 1)) for share in rows.unbind(1)]
        for point in points if self.asks else []:
            model(point)
        return points[-1] if self.returns is None else x + self.threat.eps * self.returns


@dataclass(frozen=True)
class Spoiled(Walk):
    """Hands back an image with a pixel that is not a number."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        x_adv = x.clone()
        x_adv[: self.late].flatten(1)[:, 0] = math.nan
        return x_adv


# ---------------------------------------------------------------- honest models


def trained(architecture: Any, fit: Fit) -> nn.Module:
    return Trained(architecture, DATA, fit).load(DictStore())


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """Least squares on the one-hot labels of the training part, in closed form."""
    part = DATA.split("target")
    x = torch.cat((part.x.flatten(1), torch.ones(len(part), 1)), dim=1).double()
    target = 10 * torch.nn.functional.one_hot(part.y, 10).double()
    weight = torch.linalg.solve(x.T @ x + 3 * torch.eye(65, dtype=torch.float64), x.T @ target).float()
    layer = nn.Linear(64, 10)
    layer.load_state_dict({"weight": weight[:64].T, "bias": weight[64]})
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    return trained(MLP(), Fit(epochs=6, lr=0.005, optimiser="adamw"))


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    return trained(SmallCNN(6, 24), Fit(epochs=8, batch_size=64, lr=0.008, optimiser="adamw"))


@pytest.fixture(scope="module")
def hardened() -> nn.Module:
    return trained(MLP(), Fit(loss=Madry(PGD(Linf(0.1), steps=2)), epochs=6, lr=0.005, optimiser="adamw"))


HONEST = ["linear", "mlp", "cnn", "hardened"]


@pytest.fixture(params=HONEST)
def honest(request: pytest.FixtureRequest) -> nn.Module:
    model: nn.Module = request.getfixturevalue(request.param)
    return model


def settled(eps: float, steps: int = 20) -> Iterated:
    """PGD whose steps can cross the ball several times, and that keeps its best margin."""
    return PGD(Linf(eps), steps, step_size=5 * eps / steps, objective="margin", keep="best")


EPS = 0.1
EVERY: dict[str, Diagnostic] = {
    "Finite": Finite(PGD(Linf(EPS), 5)),
    "Rounding": Rounding(PGD(Linf(EPS), 20)),
    "SilentSuccess": SilentSuccess(settled(EPS)),
    "Convergence": Convergence(PGD(Linf(EPS), 20, step_size=EPS / 4)),
    "UnstableLoss": UnstableLoss(directions=30),
    "OneStepBeatsMany": OneStepBeatsMany(FGSM(Linf(EPS)), PGD(Linf(EPS), 20)),
}


def rows(split: Split, mask: Tensor) -> Split:
    return Split(split.x[mask], split.y[mask], tuple(np.array(split.ids)[mask.numpy()].tolist()))


# ---------------------------------------------------------------- all of them


def test_the_honest_models_are_what_they_are_called(mlp: nn.Module, hardened: nn.Module, linear: nn.Module, cnn: nn.Module) -> None:
    def accuracy(model: nn.Module, x: Tensor) -> float:
        return float((model(x).argmax(1) == DIGITS.y).float().mean())

    assert min(accuracy(m, DIGITS.x) for m in (mlp, hardened, linear, cnn)) > 0.85
    attack = PGD(Linf(EPS), 10)
    plain, hard = (accuracy(m, attack(m, DIGITS.x, DIGITS.y)) for m in (mlp, hardened))
    assert hard > plain + 0.1, "the hardened network is no harder to fool"


@pytest.mark.parametrize("name", EVERY)
def test_an_honest_model_passes(name: str, honest: nn.Module) -> None:
    symptom = EVERY[name](honest, DIGITS)
    assert symptom.status == "pass", symptom.text
    assert symptom.n >= 100
    assert symptom.value is not None
    assert symptom.threshold is not None
    json.dumps(vars(symptom))  # no tensors inside


@pytest.mark.parametrize("name", EVERY)
def test_a_test_is_rebuilt_from_json(name: str) -> None:
    assert from_value(Diagnostic, json.loads(json.dumps(to_dict(EVERY[name]))), name, {}, {}) == EVERY[name]


@pytest.mark.parametrize("name", EVERY)
def test_the_declared_passes_are_those_taken(name: str, mlp: nn.Module) -> None:
    known = rows(DIGITS, mlp(DIGITS.x).argmax(1) == DIGITS.y)[slice(0, 30)]
    with counted(mlp) as counter:
        EVERY[name](mlp, known)
    assert 2 * counter.backward + counter.plain == EVERY[name].passes(len(known))


@pytest.mark.parametrize("name", EVERY)
def test_the_same_again_and_no_trace_left(name: str, mlp: nn.Module) -> None:
    split = DIGITS[slice(0, 40)]
    before = {k: v.clone() for k, v in mlp.state_dict().items()}
    assert EVERY[name](mlp, split) == EVERY[name](mlp, split)
    assert all(torch.equal(v, before[k]) for k, v in mlp.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mlp.modules()), "a hook was left behind"


@pytest.mark.parametrize("name", EVERY)
def test_a_function_is_judged_as_the_network_in_it(name: str, mlp: nn.Module) -> None:
    split = DIGITS[slice(0, 40)]
    assert EVERY[name](lambda x: mlp(x), split) == EVERY[name](mlp, split)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "Finite"])
def test_without_a_known_image_nothing_passes(name: str, mlp: nn.Module) -> None:
    split = DIGITS[slice(0, 20)]
    wrong = Split(split.x, (mlp(split.x).argmax(1) + 1) % 10, split.ids)
    assert EVERY[name](mlp, wrong).status == "not_run"
    assert EVERY[name](mlp, split[slice(0, 0)]).status == "not_run"


def test_without_an_image_finite_is_not_run(mlp: nn.Module) -> None:
    assert EVERY["Finite"](mlp, DIGITS[slice(0, 0)]).status == "not_run"


def test_hooks_are_gone_after_an_attack_that_breaks(mlp: nn.Module) -> None:
    @dataclass(frozen=True)
    class Breaks(Walk):
        def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            model(x)
            raise RuntimeError("the attack broke")

    with pytest.raises(RuntimeError, match="the attack broke"):
        SilentSuccess(Breaks())(mlp, DIGITS[slice(0, 9)])
    assert not mlp._forward_hooks
    assert not mlp._forward_pre_hooks


AIMED = Walk(threat=Linf(0.1, targeted=True))
REFUSED: dict[str, Callable[[], object]] = {
    "untargeted": lambda: Finite(AIMED),
    "Rounding: attack must be untargeted": lambda: Rounding(AIMED),
    "SilentSuccess: attack must be untargeted": lambda: SilentSuccess(AIMED),
    "Convergence: attack must be untargeted": lambda: Convergence(AIMED),
    "OneStepBeatsMany: one must be untargeted": lambda: OneStepBeatsMany(AIMED, AIMED),
    "one threat": lambda: OneStepBeatsMany(FGSM(Linf(0.1)), PGD(Linf(0.2))),
    "one threat, got": lambda: OneStepBeatsMany(FGSM(Linf(0.1)), PGD(L2(0.1))),
    "more gradients": lambda: OneStepBeatsMany(FGSM(BALL), FGSM(BALL)),
    "points must be 1 or more": lambda: Finite(Walk(), points=0),
    "share must be in": lambda: SilentSuccess(Walk(), share=1.0),
    "draws must be 1 or more": lambda: SilentSuccess(Walk(), draws=0),
    "gain must be above 0": lambda: Convergence(Walk(), gain=0.0),
    "tail must be above 0": lambda: Convergence(Walk(), tail=1.0),
    "share must be above 0": lambda: Convergence(Walk(), share=math.nan),
    "draws must be 2 or more": lambda: Convergence(Walk(), draws=1),
    "directions must be 1 or more": lambda: UnstableLoss(directions=0),
    "radius must be above 0": lambda: UnstableLoss(radius=0.0),
    "most must be above 0": lambda: UnstableLoss(most=1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_field_is_refused_by_name(message: str) -> None:
    with pytest.raises(SpecError, match=message):
        REFUSED[message]()


def test_more_images_than_one_batch_are_counted_once_each() -> None:
    split = grey(130)
    silent = SilentSuccess(Walk((0.0, 1.0), returns=0.0))(ramp(at=138 / 255), split)
    rising = Convergence(Walk(tuple(i / 10 for i in range(11))))(ramp(), split)
    vanished = Rounding(BETWEEN)(between_levels(), two_kinds(130, 130))
    finite = Finite(Walk(), points=1)(NaNWhere(ramp(), lambda x: torch.ones(len(x), dtype=torch.bool)), split)
    loose = UnstableLoss(directions=2)(two_levels(0.9, 1e-9), split)
    for symptom in (silent, rising, vanished, finite, loose):
        assert (symptom.status, symptom.value, symptom.n, len(symptom.examples)) == ("fail", 1.0, 130, 20), symptom.text


# ---------------------------------------------------------------- B2


class NaNWhere(nn.Module):
    """The network, and `answer` in place of a score where `rule` holds of the image."""

    def __init__(self, inner: nn.Module, rule: Callable[[Tensor], Tensor], answer: float = math.nan) -> None:
        super().__init__()
        self.inner, self.rule, self.answer = inner, rule, answer
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        struck = self.rule(x.detach()) if len(x) else torch.zeros(0, dtype=torch.bool)
        return logits.masked_fill(struck[:, None] & (torch.arange(logits.shape[1]) == 0), self.answer)


def moved_far(share: float, eps: float = EPS) -> Callable[[Tensor], Tensor]:
    """Whether the mean pixel is over `share` eps from the nearest image of the split: a threshold on the perturbation."""

    def rule(x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1), DIGITS.x.flatten(1), p=1).amin(1) / 64 > share * eps

    return rule


def places(symptom: Symptom) -> list[int]:
    """The counts of the text: clean, on the attack's way, in the ball, in the box."""
    return [int(part.split()[-1]) for part in symptom.text.partition("(")[2].partition(")")[0].split(",")]


PLANTED_NAN: dict[str, tuple[Callable[[Tensor], Tensor], tuple[bool, bool, bool, bool]]] = {
    "everywhere": (lambda x: x.flatten(1).mean(1) >= 0, (True, True, True, True)),
    "far from any image of the split": (moved_far(0.45), (False, True, True, True)),
    "bright images": (lambda x: x.flatten(1).mean(1) > 0.9, (False, False, False, True)),
    "black images": (lambda x: x.flatten(1).amax(1) == 0, (False, False, False, True)),
    "images without a clear background": (lambda x: x.flatten(1).median(1).values > 0.45, (False, False, False, True)),
}


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", PLANTED_NAN)
def test_nan_is_found_where_it_was_planted(name: str, answer: float, mlp: nn.Module) -> None:
    rule, where = PLANTED_NAN[name]
    symptom = Finite(PGD(Linf(EPS), 3))(NaNWhere(mlp, rule, answer), DIGITS[slice(0, 50)])
    assert (symptom.status, symptom.effect, symptom.threshold, symptom.n) == ("fail", "void", 0.0, 50), symptom.text
    assert tuple(k > 0 for k in places(symptom)) == where, symptom.text
    rate = clopper_pearson(50, 50)
    assert (symptom.value, symptom.low, symptom.high) == (1.0, rate.low, rate.high)
    assert "never a success" in symptom.text
    assert symptom.examples == DIGITS.ids[:20]


def test_nan_on_some_clean_images_names_them(mlp: nn.Module) -> None:
    split = DIGITS[slice(0, 40)]
    struck = split.x[[3, 17]]

    def rule(x: Tensor) -> Tensor:
        return (x[:, None] == struck).flatten(2).all(2).any(1)

    symptom = Finite(Walk(threat=Linf(0.1)), points=1)(NaNWhere(mlp, rule), split)
    assert (symptom.status, symptom.value, symptom.examples) == ("fail", 2 / 40, (split.ids[3], split.ids[17]))
    assert places(symptom) == [2, 2, 0, 0], "the walk asks about the image itself"


def test_an_attack_that_meets_nan_and_returns_a_sound_point_does_not_hide_it() -> None:
    model = NaNWhere(ramp(), lambda x: (x.flatten(1).mean(1) - 70 / 255).abs() < 1 / 255)  # a shell that the walk crosses
    split = grey(level=60, side=16)  # so that no random point comes near the shell
    crossing, beside = (Finite(Walk((0.0, at, 0.2)), points=1)(model, split) for at in (0.5, 0.4))
    assert places(crossing) == [0, 20, 0, 0], crossing.text
    assert beside.status == "pass", beside.text


def test_an_attack_that_returns_nan_is_found() -> None:
    symptom = Finite(Spoiled(late=3))(ramp(), grey())
    assert places(symptom) == [0, 3, 0, 0]
    assert symptom.examples == ("g000", "g001", "g002")


@pytest.mark.parametrize("threat", [Linf(EPS), L2(0.5), L1(1.0), L0(3)], ids=lambda t: t.norm)
def test_every_ball_is_searched(threat: Any) -> None:
    split = grey()
    model = NaNWhere(ramp(), lambda x: (x != split.x[0]).flatten(1).any(1))
    assert places(Finite(Walk((0.0,), threat=threat), points=1)(model, split)) == [0, 0, 20, 20]
    assert Finite(Walk((0.0,), threat=threat), points=1)(ramp(), split).status == "pass"


def test_answers_outside_the_pixel_box_are_the_attacks_own_affair() -> None:
    model = NaNWhere(ramp(), lambda x: (x < 0).flatten(1).any(1))
    assert Finite(Walk((0.0, -100.0, 0.0)))(model, grey()).status == "pass"


# ---------------------------------------------------------------- B3


LEVEL = 1 / 255


def between_levels() -> nn.Module:
    """Dark images are wrong once their mean pixel has risen by 1.2 levels, bright ones never are."""
    return ByBrightness(lambda m: torch.where(m < 120 / 255, m - (60 + 1.2) / 255, -1.0))


BETWEEN = Walk((0.0, 1.0), threat=Linf(1.4 * LEVEL))  # leaves room for one level


def test_success_between_two_levels_vanishes() -> None:
    split = two_kinds(20)
    symptom = Rounding(BETWEEN)(between_levels(), split)
    assert (symptom.status, symptom.effect, symptom.value, symptom.n) == ("fail", "note", 1.0, 20)
    assert symptom.text == "100.0 pt vanish when saved: float fools 20 of 20 images, 8 bits 0"
    assert symptom.examples == split.ids
    assert symptom.low is not None
    assert symptom.low > 0.7


@pytest.mark.parametrize(("lost", "status"), [(7, "pass"), (8, "fail")])
def test_eight_lost_images_are_the_least_that_rounding_is_blamed_for(lost: int, status: str) -> None:
    symptom = Rounding(BETWEEN)(between_levels(), two_kinds(lost))
    assert (symptom.status, symptom.value) == (status, lost / 20)


def test_whole_levels_lose_nothing() -> None:
    symptom = Rounding(replace(BETWEEN, threat=Linf(8 * LEVEL)))(between_levels(), two_kinds(20))
    assert (symptom.status, symptom.value) == ("pass", 0.0)


def test_rounding_says_nothing_where_nothing_is_fooled_or_rounded() -> None:
    assert "no success" in Rounding(BETWEEN)(between_levels(), two_kinds(0)).text
    finer = Split(grey().x + 0.2 * LEVEL, grey().y, grey().ids)
    unrounded = Rounding(Walk())(ramp(at=0.51), finer)
    assert (unrounded.status, "not 8-bit" in unrounded.text) == ("not_run", True)
    with pytest.raises(BudgetError):
        Rounding(Walk((1.1,)))(ramp(), grey())


# ---------------------------------------------------------------- B4


def lost_after(attack: Walk, model: nn.Module | None = None, split: Split | None = None, **fields: Any) -> Symptom:
    return SilentSuccess(attack, **fields)(model or ramp(at=138 / 255), split or grey())


def test_a_success_that_is_not_returned_is_silent() -> None:
    symptom = lost_after(Walk((0.0, 1.0), returns=0.0))
    assert (symptom.status, symptom.effect, symptom.value, symptom.threshold) == ("fail", "cap", 1.0, 0.0)
    assert symptom.text == "found and lost on 20 of 20 images: keep the best-loss iterate"
    rate = clopper_pearson(20, 20)
    assert (symptom.low, symptom.high) == (rate.low, rate.high)


def test_one_image_is_enough_unless_the_share_says_otherwise() -> None:
    attack = Walk((0.0, 0.2, 0.1), returns=0.0, others=(0.0, 1.0, 0.0), late=1)
    assert (lost_after(attack).status, lost_after(attack).examples) == ("fail", ("g000",))
    assert lost_after(attack, share=0.05).status == "pass"
    assert lost_after(attack, share=0.049).status == "fail"


QUIET: dict[str, tuple[Walk, str]] = {
    "returned": (Walk((0.0, 1.0)), "pass"),
    "returned, after others": (Walk((1.0, 0.0, 1.0)), "pass"),
    "another success returned": (Walk((0.8, 0.0), returns=1.0), "pass"),
    "never fooled": (Walk((0.0, 0.3)), "pass"),
    "fooled only outside the budget": (Walk((0.0, 1.2), returns=0.0), "pass"),
    "asked only outside the budget": (Walk((1.2, 1.3), returns=0.0), "not_run"),
    "nothing asked, nothing done": (Walk(asks=False, returns=0.0), "not_run"),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_was_not_lost_is_not_silent(name: str) -> None:
    attack, status = QUIET[name]
    assert lost_after(attack).status == status


def test_a_success_that_rounding_takes_was_none() -> None:
    silent = replace(BETWEEN, returns=0.0)
    assert SilentSuccess(silent)(between_levels(), two_kinds(20)).status == "pass"
    assert SilentSuccess(replace(silent, threat=BALL))(between_levels(), two_kinds(20)).status == "fail"


def test_a_loop_that_swings_over_the_goal_loses_it_and_keeping_the_best_finds_it_again() -> None:
    model = ByBrightness(lambda m: 6 / 255 - (m - 136 / 255).abs())  # wrong from 130 to 142; a step leads from 128 to 140 and back
    swing = I_FGSM(Linf(24 / 255), steps=4, step_size=12 / 255)
    last, best = (SilentSuccess(replace(swing, keep=keep))(model, grey()) for keep in ("last", "best"))
    assert (last.status, last.value) == ("fail", 1.0)
    assert (best.status, best.value) == ("pass", 0.0)


def test_copies_in_one_query_are_points_of_their_own() -> None:
    @dataclass(frozen=True)
    class AtOnce(Walk):
        def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            model(torch.cat([x + self.threat.eps * share for share in self.shares]))
            return x

    assert lost_after(AtOnce((0.0, 1.0, 0.3))).value == 1.0


def test_a_network_that_writes_to_its_input_is_heard_all_the_same() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5)
            return ramp(at=138 / 255 - 0.5)(x)

    assert SilentSuccess(I_FGSM(BALL, 4))(InPlace().eval(), grey()).status == "pass"


def test_a_lucky_draw_on_the_way_is_no_lost_success(linear: nn.Module) -> None:
    noisy = Noise(0.3).wrap(linear)
    attack = PGD(Linf(0.05), 20)
    assert SilentSuccess(attack)(noisy, DIGITS).status == "pass"
    planted = SilentSuccess(Walk((0.0, 1.0), returns=0.0))(Noise(0.05).wrap(ramp(at=138 / 255)), grey())
    assert planted.value == 1.0, "noise hides what was lost"


# ---------------------------------------------------------------- B5


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("norm", [Linf, L2])
def test_pgd_settles_on_two_linear_classes_exactly(norm: Any, steps: int) -> None:
    split = two_kinds(20)
    model = ByBrightness(lambda m: 4 * (m - 0.9))
    attack = PGD(norm(0.1), steps, step_size=None if norm is Linf else 0.5 / steps)  # on a sphere the default turns too slowly
    symptom = Convergence(attack)(model, split)
    assert (symptom.status, symptom.value) == ("pass", 0.0), symptom.text
    reached = model(attack(model, split.x, split.y))[:, 1]
    best = 4 * (split.x.flatten(1).mean(1) + (0.1 if norm is Linf else 0.1 / 4) - 0.9)
    assert torch.allclose(reached, best.double(), atol=1e-4), "and it settled elsewhere than at the optimum"


@pytest.mark.parametrize("steps", [20, 100])
def test_pgd_settles_on_ten_linear_classes(steps: int, linear: nn.Module) -> None:
    assert Convergence(PGD(Linf(EPS), steps))(linear, DIGITS).status == "pass"


@pytest.mark.parametrize("attack", [PGD(Linf(EPS), 100, step_size=EPS / 10), APGD_CE(Linf(EPS), 100)], ids=["PGD-100", "APGD-100"])
def test_a_long_attack_settles_on_an_honest_network(attack: Iterated, honest: nn.Module) -> None:
    symptom = Convergence(attack)(honest, DIGITS[slice(0, 80)])
    assert symptom.status == "pass", symptom.text


@pytest.mark.parametrize("steps", [2, 10])
def test_tiny_steps_do_not_settle(steps: int, honest: nn.Module) -> None:
    symptom = Convergence(PGD(Linf(EPS), steps, step_size=EPS / 40))(honest, DIGITS)
    assert (symptom.status, symptom.effect, symptom.threshold) == ("fail", "cap", 0.05)
    assert symptom.value is not None
    assert symptom.value > 0.5
    assert "double the steps" in symptom.text


def test_restarts_do_not_hide_tiny_steps(mlp: nn.Module) -> None:
    """The best over all restarts stands still in the last one; no restart has settled."""
    attack = PGD(Linf(EPS), 5, step_size=EPS / 40, restarts=8, keep="best")
    symptom = Convergence(attack)(mlp, DIGITS)
    assert symptom.value is not None
    assert symptom.value > 0.5
    assert Convergence(replace(settled(EPS, 20), restarts=3))(mlp, DIGITS).status == "pass"


def traced(shares: Sequence[float], model: nn.Module | None = None, **fields: Any) -> Symptom:
    return Convergence(Walk(tuple(shares), **fields))(model or ramp(), grey())


@pytest.mark.parametrize(("before", "status"), [(0.991, "pass"), (0.989, "fail")])
def test_the_mark_is_one_percent_of_the_rise_in_the_last_fifth(before: float, status: str) -> None:
    symptom = traced((0.0, 0.3, *[0.9] * 6, before, 1.0))  # ten steps, the last one to the returned point, where it stands already
    assert symptom.status == status, symptom.text


@pytest.mark.parametrize(("late", "status"), [(1, "pass"), (2, "fail")])
def test_the_mark_is_five_percent_of_the_images(late: int, status: str) -> None:
    rising = tuple(i / 10 for i in range(11))
    symptom = traced((0.0, 0.5, *[1.0] * 9), others=rising, late=late)
    assert (symptom.status, symptom.value) == (status, late / 20)
    assert symptom.examples == tuple(f"g{i:03d}" for i in range(late))


SETTLED: dict[str, tuple[Sequence[float], Callable[[], nn.Module], str]] = {
    "rose to its cap at once": (
        (0.0, *[1.0] * 10),
        lambda: ByBrightness(lambda m: (500 * (m - 0.502)).minimum(torch.tensor(8.0)) - 10),
        "pass",
    ),
    "starts wrong, saturated": ([0.5] * 10, lambda: ByBrightness(lambda m: torch.where(m > 129 / 255, 9.0, -9.0)), "pass"),
    "wrong, and still rising": ([i / 10 for i in range(11)], lambda: ramp(at=129 / 255), "pass"),
    "still rising": ([i / 10 for i in range(11)], ramp, "fail"),
    "flat, and right": ([0.0] * 10, ramp, "fail"),
    "flat though it moves": ([i / 10 for i in range(11)], lambda: ramp(slope=1e-12), "fail"),
    "falls": ([1 - i / 10 for i in range(11)], ramp, "fail"),
    "falls after its best": ((0.0, 0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), ramp, "pass"),
    "swings": ((0.0, *[1.0, 0.8] * 10), ramp, "pass"),
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_counts_as_settled(name: str) -> None:
    shares, model, status = SETTLED[name]
    symptom = traced(shares, model())
    assert symptom.status == status, symptom.text


def test_a_saturated_cross_entropy_is_not_flat() -> None:
    """float32 has no cross-entropy at a margin of 300; the log-odds still tell a rise from none."""
    model = ByBrightness(lambda m: (5000 * (m - 200 / 255)).float())
    x = grey(1).x
    assert float(nn.functional.cross_entropy(model(x), torch.tensor([0]))) == 0.0
    assert traced((0.0, *[1.0] * 10), model).status == "pass"
    assert traced([i / 10 for i in range(11)], model).status == "fail"


class ZeroBackward(nn.Module):
    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach()) + 0 * x.sum()


@pytest.mark.parametrize("attack", [PGD(Linf(EPS), 20), I_FGSM(Linf(EPS)), APGD_CE(Linf(EPS), 20)], ids=["PGD", "I_FGSM", "APGD"])
def test_a_dead_gradient_is_flat_and_no_convergence(attack: Iterated, mlp: nn.Module) -> None:
    symptom = Convergence(attack)(ZeroBackward(mlp), DIGITS)
    survivors = int((mlp(attack(ZeroBackward(mlp), DIGITS.x, DIGITS.y)).argmax(1) == DIGITS.y).sum())
    assert symptom.status == "fail"
    assert abs(round((symptom.value or 0) * symptom.n) - survivors) <= 3, symptom.text  # the streams, so the starts, are others
    assert "flat" in symptom.text


def test_nan_is_no_convergence_whatever_else_happens(mlp: nn.Module) -> None:
    split = rows(DIGITS, mlp(DIGITS.x).argmax(1) == DIGITS.y)
    symptom = Convergence(PGD(Linf(EPS), 20, step_size=EPS / 4))(NaNWhere(mlp, moved_far(0.4)), split)
    assert symptom.status == "fail"
    assert f"NaN {len(split)})" in symptom.text
    one = Convergence(Walk((0.0, 0.5, 1.0, 1.0, 1.0), others=(0.0, 0.25, 1.0, 1.0, 1.0), late=3))
    struck = NaNWhere(ramp(at=129 / 255), lambda x: (x.flatten(1).mean(1) - 133 / 255).abs() < LEVEL)
    assert one(struck, grey()).value == 3 / 20, "fooled in the end, and NaN on the way"


def test_noise_is_neither_progress_nor_convergence(hardened: nn.Module) -> None:
    split, eps = DIGITS[slice(0, 50)], 0.1
    averaged = Noise(0.05, n=8).relax(hardened)
    assert Convergence(PGD(Linf(eps), 20, step_size=eps / 4))(averaged, split).status == "pass"
    drawn = Noise(0.05).wrap(hardened)
    assert Convergence(Iterated(Linf(eps), 20, eps / 4, (EOT(4),), random_start=True))(drawn, split).status == "pass"
    dead = Convergence(PGD(Linf(eps), 20))(ZeroBackward(averaged), split)
    assert dead.status == "fail", "noise passed for progress"


UNHEARD: dict[str, Any] = {
    "one step": FGSM(Linf(EPS)),
    "nothing asked": Walk(asks=False),
    "the smallest distance": DeepFool(L2(1.0)),
    "other points than its own": Iterated(Linf(EPS), 10, parts=(DiverseInputs(),)),
    "outside the ball": Walk((0.0, *[1.5] * 9), returns=1.0),
}


@pytest.mark.parametrize("name", UNHEARD)
def test_what_cannot_be_followed_is_not_run(name: str, cnn: nn.Module) -> None:
    symptom = Convergence(UNHEARD[name])(cnn, DIGITS[slice(0, 20)])
    assert (symptom.status, symptom.value) == ("not_run", None), symptom.text


# ---------------------------------------------------------------- B6


def two_levels(right: float, elsewhere: float) -> nn.Module:
    """Says class 0 with probability `right` on the 8-bit lattice and `elsewhere` off it: each neighbour is off it."""

    def lead(x: Tensor) -> Tensor:
        on = ((255 * x).round() - 255 * x).abs().flatten(1).amax(1) < 1e-3
        return torch.where(on, math.log(1 / right - 1), math.log(1 / elsewhere - 1))

    return ByBrightness(lead, whole=True)


@pytest.mark.parametrize(("elsewhere", "status"), [(0.81, "pass"), (0.80, "fail")])
def test_the_mean_relative_change_is_that_of_the_formula(elsewhere: float, status: str) -> None:
    here, there = -math.log(0.9), -math.log(elsewhere)
    symptom = UnstableLoss()(two_levels(0.9, elsewhere), grey())
    assert symptom.value == pytest.approx((there - here) / (here + 1), rel=1e-4)
    assert (symptom.status, symptom.effect, symptom.threshold) == (status, "cap", 0.1)
    assert f"{min(1.0, (there - here) / here):.3f} with |L| alone" in symptom.text


def test_each_change_counts_as_one_at_most() -> None:
    symptom = UnstableLoss(directions=5)(two_levels(0.9, 1e-9), grey())
    assert symptom.value == 1.0
    assert symptom.examples == grey().ids


def test_a_ripple_is_unstable_and_a_slope_is_not() -> None:
    assert UnstableLoss()(ByBrightness(lambda m: -1 + 3 * torch.cos(4e4 * (m - 128 / 255))), grey()).status == "not_run"
    assert UnstableLoss()(ByBrightness(lambda m: -1 - 3 * torch.cos(4e4 * (m - 128 / 255))), grey()).status == "fail"
    assert UnstableLoss()(ramp(slope=20, at=140 / 255), grey()).status == "pass"


def test_noise_of_its_own_makes_a_loss_unstable(mlp: nn.Module) -> None:
    loud, averaged = Noise(0.5).wrap(mlp), Noise(0.5, n=40).relax(mlp)
    noisy, calm = (UnstableLoss(directions=10)(m, DIGITS[slice(0, 40)]) for m in (loud, averaged))
    assert noisy.status == "fail"
    assert (noisy.value or 0) > 2 * (calm.value or 0), "averaging did not calm it"


def test_a_neighbour_without_an_answer_counts_as_one() -> None:
    off = NaNWhere(ramp(), lambda x: ((255 * x).round() - 255 * x).abs().flatten(1).amax(1) > 1e-3)
    assert UnstableLoss(directions=3)(off, grey()).value == 1.0


# ---------------------------------------------------------------- B8


def decoy() -> nn.Module:
    """Dark images: the gradient leads to a hill at +0.3 eps, with a valley behind it and the wrong class beyond. Bright: a slope."""
    at = torch.tensor([-1.0, 0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    height = torch.tensor([-2.0, -1.0, -0.5, -3.0, 1.0], dtype=torch.float64)

    def lead(m: Tensor) -> Tensor:
        dark = m < 120 / 255
        t = (m - torch.where(dark, 60 / 255, 180 / 255)) / BALL.eps
        right = torch.searchsorted(at, t.detach().contiguous()).clamp(1, 4)
        slope = (height[right] - height[right - 1]) / (at[right] - at[right - 1])
        return torch.where(dark, height[right - 1] + slope * (t - at[right - 1]), t - 0.5)

    return ByBrightness(lead)


STEPS = OneStepBeatsMany(FGSM(BALL), PGD(BALL, 20, step_size=BALL.eps / 10))


@pytest.mark.parametrize(("planted", "status"), [(0, "pass"), (7, "pass"), (8, "fail"), (20, "fail")])
def test_one_step_over_the_decoy_beats_many_that_stop_at_it(planted: int, status: str) -> None:
    symptom = STEPS(decoy(), two_kinds(planted))
    assert (symptom.status, symptom.effect, symptom.value, symptom.n) == (status, "mask", planted / 20, 20), symptom.text
    assert symptom.examples == two_kinds(planted).ids[:planted]
    assert symptom.low is not None
    assert symptom.high is not None
    assert symptom.low <= planted / 20 <= symptom.high
    assert ("one-step beats iterative" in symptom.text) == (status == "fail")


def test_images_that_only_many_steps_fool_weigh_against_it(honest: nn.Module) -> None:
    symptom = OneStepBeatsMany(FGSM(Linf(0.15)), PGD(Linf(0.15), 20))(honest, DIGITS)
    assert symptom.status == "pass"
    assert symptom.value is not None
    assert symptom.value <= 0


def test_an_iterative_attack_that_does_nothing_is_beaten(mlp: nn.Module) -> None:
    symptom = OneStepBeatsMany(FGSM(Linf(0.15)), Walk((0.0,), threat=Linf(0.15), gradients=20))(mlp, DIGITS)
    assert symptom.status == "fail"


def test_one_step_without_a_gradient_or_with_seven_images_is_no_test(mlp: nn.Module) -> None:
    dead = OneStepBeatsMany(FGSM(Linf(EPS)), PGD(Linf(EPS)))(ZeroBackward(mlp), DIGITS)
    assert (dead.status, "moves no image" in dead.text) == ("not_run", True)
    few = STEPS(decoy(), two_kinds(7, 7))
    assert (few.status, few.n) == ("not_run", 7)
