"""The detector: its score and threshold, what it answers, and the attack that it does not see."""

from __future__ import annotations

import math

import pytest
import torch
from defence_fakes import DictStore, Toy, net
from torch import Tensor, nn

from firedoor.attacks.iterated import Iterated
from firedoor.attacks.objectives.undetected import Detecting, Undetected
from firedoor.defences.fit import Fit
from firedoor.defences.wrappers.bit_depth import BitDepth
from firedoor.defences.wrappers.median import Median
from firedoor.defences.wrappers.noise import Noise
from firedoor.defences.wrappers.squeezing import Detector, Squeezing, threshold_at
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Classifier, Split
from firedoor.spec import build, to_dict
from firedoor.threat import Linf

DATA = Toy()
TEST = DATA.split("evaluation")
REJECTED = 3


@pytest.fixture(scope="module")
def model() -> nn.Module:
    module = net(DATA, key=1)
    Fit(epochs=6, batch_size=16, lr=0.05).train(module, DATA.split("target"), DictStore(), 0)
    return module.eval().requires_grad_(False)


def slope_of(pixel: Tensor) -> Tensor:
    """Logits (0, 8 v - 4) of the first pixel v."""
    v = pixel.flatten(1)[:, 0]
    return torch.stack([0 * v, 8 * v - 4], 1)


def live(recipe: Squeezing, model: Classifier, relaxed: bool = False) -> Detector:
    detector = (recipe.relax if relaxed else recipe.wrap)(model)
    assert isinstance(detector, Detector)
    return detector


def test_the_score_is_the_largest_change_of_the_probabilities() -> None:
    """One bit turns v into 0 or 1, so p_1 = sigmoid(8 v - 4) becomes sigmoid(-+4); the change counts in both classes."""
    v = torch.tensor([0.0, 70.0, 127.0, 128.0, 255.0]) / 255
    x = v.view(5, 1, 1, 1).expand(5, 1, 4, 4)
    rounded = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
    wanted = 2 * ((8 * rounded - 4).sigmoid() - (8 * v - 4).sigmoid()).abs()
    for squeezers in ((BitDepth(1),), (BitDepth(8), BitDepth(1), Median(1))):
        detector = Squeezing(0.5, squeezers).wrap(slope_of)
        assert isinstance(detector, Detecting)
        assert detector.threshold == 0.5
        torch.testing.assert_close(detector.score(x), wanted)  # type: ignore[attr-defined]
        answer = detector(x)
        torch.testing.assert_close(answer[:, :2], slope_of(x))
        assert answer.argmax(1).tolist() == [0, 0, 2, 2, 1]
        assert bool((answer[wanted <= 0.5, 2] < answer[wanted <= 0.5, :2].amin(1)).all()), "the least, where it is not given"


@pytest.mark.parametrize("relaxed", [False, True])
def test_labels_follow_score_and_threshold_in_both_views(relaxed: bool, model: nn.Module) -> None:
    with torch.no_grad():
        score = live(Squeezing(0.0), model, relaxed).score(TEST.x)
        assert torch.equal(score, live(Squeezing(2.0), model).score(TEST.x)), "the squeezers are exact in both views"
        for threshold in (0.0, float(score.median()), float(score.max()), 2.0):
            answer = live(Squeezing(threshold), model, relaxed)(TEST.x)
            wanted = torch.where(score > threshold, REJECTED, model(TEST.x).argmax(1))
            assert torch.equal(answer.argmax(1), wanted)
            assert torch.isfinite(answer).all()


def test_the_relaxed_last_logit_rises_with_the_score(model: nn.Module) -> None:
    detector = live(Squeezing(0.4, (BitDepth(3), Median(2))), model, relaxed=True)
    x = TEST.x.clone().requires_grad_()
    answer, score = detector(x), detector.score(x)
    top = answer[:, :3].amax(1)
    (got,) = torch.autograd.grad((answer[:, 3] - top).sum(), x, retain_graph=True)
    (of_score,) = torch.autograd.grad(score.sum(), x)
    assert bool((of_score.flatten(1).abs().amax(1) > 0).all()), "an image without a slope"
    unit = 1 + top.detach().abs()
    torch.testing.assert_close(got, unit.view(-1, 1, 1, 1) * of_score, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answer[:, 3] - top, unit * (score - 0.4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relaxed", [False, True])
def test_large_logits_are_still_rejected_and_nan_stays_nan(relaxed: bool) -> None:
    x = torch.tensor([127.0, 100.0, 250.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4) / 255
    for scale in (1e-6, 1.0, 1e8, 1e30):

        def scaled(seen: Tensor, scale: float = scale) -> Tensor:
            return torch.where(seen.flatten(1)[:, :1] > 0.45, scale, -scale) * torch.tensor([[-1.0, 1.0]])

        recipe = Squeezing(1e-7 if scale < 1e-3 else 1.0, (BitDepth(1),))
        answer = (recipe.relax if relaxed else recipe.wrap)(scaled)(x)
        assert answer.argmax(1).tolist() == [2, 0, 1], scale
    broken = (Squeezing(0.5).relax if relaxed else Squeezing(0.5).wrap)(lambda seen: slope_of(seen) / 0.0 * 0.0)
    assert bool(torch.isnan(broken(x)).any(1).all()), "no finite answer is no answer"


def test_a_sure_answer_keeps_its_slope() -> None:
    """Margins of 30 and 40, where the probability in float32 is 1 and has no slope: d score / dv = 80 (s(-30) - s(-40))."""
    detector = live(Squeezing(0.5, (BitDepth(1),)), lambda x: torch.stack([40 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1), relaxed=True)
    x = torch.full((1, 1, 1, 1), 0.75, requires_grad=True)
    (g,) = torch.autograd.grad(detector.score(x).sum(), x)
    assert float(g.abs()) == pytest.approx(80 * (math.exp(-30) - math.exp(-40)), rel=1e-3)


# ------------------------------------------------------------------ the threshold


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5])
def test_the_threshold_gives_the_stated_share_of_false_alarms_and_no_lower_one_does(rate: float, model: nn.Module) -> None:
    split = DATA.split("development")
    threshold = threshold_at(model, split, rate=rate)
    score = live(Squeezing(2.0), model).score(split.x)
    assert float((score > threshold).double().mean()) <= rate
    assert float((score >= threshold).double().mean()) > rate
    rejected = live(Squeezing(threshold), model)(split.x).argmax(1) == REJECTED
    assert int(rejected.sum()) == int(rate * len(split))


def test_a_threshold_does_not_depend_on_the_batch_and_ties_are_not_alarms(model: nn.Module) -> None:
    split = DATA.split("development")
    three = Split(split.x.repeat(3, 1, 1, 1), split.y.repeat(3), tuple(map(str, range(180))))
    assert threshold_at(model, three) == pytest.approx(threshold_at(model, split), abs=1e-6)
    assert threshold_at(lambda x: x.flatten(1)[:, :3] * 0, split) == 0.0


def test_a_study_holds_the_number() -> None:
    recipe = Squeezing(0.8, (BitDepth(5), Median(2)))
    assert build(Squeezing, to_dict(recipe), "wrapper", {}, {}) == recipe
    assert build(Squeezing, {"type": "Squeezing", "threshold": 0.8}, "wrapper", {}, {}) == Squeezing(0.8)
    assert (recipe.abstains, recipe.stochastic) == (True, False)


# ------------------------------------------------------------------ what breaks it


def test_the_attack_that_knows_the_detector_evades_it_where_the_others_are_rejected(model: nn.Module) -> None:
    threat = Linf(80 / 255)
    recipe = Squeezing(threshold_at(model, DATA.split("development")))
    deployed, relaxed = live(recipe, model), live(recipe, model, relaxed=True)

    def evaded(source: nn.Module, objective: Undetected | str, keep: str) -> float:
        attack = Iterated(threat, steps=25, step_size=threat.eps / 6, objective=objective, keep=keep)  # type: ignore[arg-type]
        x_adv = (255 * attack(source, TEST.x, TEST.y)).round() / 255
        label = deployed(x_adv).argmax(1)
        return float(((label != TEST.y) & (label != REJECTED)).float().mean())

    assert float((deployed(TEST.x).argmax(1) == TEST.y).float().mean()) >= 0.85
    assert evaded(relaxed, "cross_entropy", "last") <= 0.2, "it raises the last logit as any other, and is rejected"
    unaware, aware = evaded(model, "cross_entropy", "last"), evaded(relaxed, Undetected(), "best")
    assert aware >= 0.85
    assert aware >= unaware + 0.15


def test_wrong_use_is_refused_with_a_remedy(model: nn.Module) -> None:
    split = DATA.split("development")
    for threshold in (-0.1, 2.1, float("nan")):
        with pytest.raises(SpecError, match=r"threshold must be in \[0, 2\].*threshold_at"):
            Squeezing(threshold)
    for squeezers in ((), [Median()]):
        with pytest.raises(SpecError, match="must be a tuple of wrappers"):
            Squeezing(0.5, squeezers)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="must not draw at random, got Noise"):
        threshold_at(model, split, (Median(), Noise()))
    with pytest.raises(SpecError, match="rate must be in"):
        threshold_at(model, split, rate=1.0)
    with pytest.raises(DataError, match="needs clean images"):
        threshold_at(model, split[slice(0, 0)])
    with pytest.raises(ModelRefused, match="finite logits for every clean image"):
        threshold_at(lambda x: slope_of(x) / 0.0 * 0.0, split)
