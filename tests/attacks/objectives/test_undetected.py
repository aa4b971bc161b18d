"""The objective against detectors: its formula, the point where it stops being rejected, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from victims import Linear, images, normals

from firedoor import losses
from firedoor.attacks import I_FGSM, Iterated
from firedoor.attacks.objectives.undetected import Detecting, Undetected
from firedoor.contracts.detector_source import Lenient, OnDetector
from firedoor.contracts.entries import subject
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import SourceObjective
from firedoor.spec import build, to_dict
from firedoor.threat import Linf

X, Y = images(6), torch.tensor([0, 1, 2, 3, 0, 1])


class Watched(nn.Module):
    """Linear logits, and a linear score v.x, rejected above `threshold`."""

    def __init__(self, w: Tensor, v: Tensor, threshold: float) -> None:
        super().__init__()
        self.net, self.v, self.threshold = Linear(w), v, threshold
        self.asked: list[str] = []

    def score(self, x: Tensor) -> Tensor:
        self.asked.append("score")
        return x.flatten(1) @ self.v

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append("logits")
        logits = self.net(x)
        excess = x.flatten(1) @ self.v - self.threshold
        return torch.cat([logits, (logits.amax(1) + excess)[:, None]], 1)


def test_formula_over_the_classes_alone_and_only_above_the_slack() -> None:
    v = normals(128, key=3) / 10
    score = X.flatten(1) @ v
    limit = float(score.median())  # both sides of the hinge are looked at
    source = Watched(normals(4, 128) / 4, v, limit)
    for lam, slack in ((2.0, 0.1), (0.0, 0.1), (5.0, 0.0)):
        plain, over = losses.cross_entropy(source.net(X), Y), lam * (score - limit + slack).clamp_min(0)
        wrong, aim = source.net(X).argmax(1) != Y, Linf(0.1, targeted=True)
        assert 0 < int(wrong.sum()) < len(X)
        for objective, want in (
            (Undetected(lam, slack, once_fooled=False), plain - over),
            (Undetected(lam, slack), plain - over * wrong),
            (Undetected(lam, slack, once_fooled=False, threat=aim), plain + over),  # lowered, and with it the score
            (Undetected(lam, slack, threat=aim), plain + over * ~wrong),
        ):
            got = objective.start(source, X, Y)(X)
            assert torch.allclose(got, want, atol=1e-12), objective
    twice = Undetected().start(source, X, Y)(torch.cat((X, 1 - X)))
    one = Undetected().start(source, X, Y)
    assert torch.allclose(twice, torch.cat((one(X), one(1 - X))), atol=1e-12)


@pytest.mark.parametrize("once_fooled", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_fools_and_stays_under_the_threshold_where_the_cross_entropy_is_rejected(targeted: bool, once_fooled: bool) -> None:
    """Class 1 leads by 40 a + 12 b - 25.5 = 1/2. The score rises as a falls, and may do so by .04; b falling by .1 suffices."""
    way = torch.tensor([[0.0, 0.0], [40.0, 12.0]], dtype=torch.float64)
    source = Watched(way, torch.tensor([-1.0, 0.0], dtype=torch.float64), threshold=-0.46)
    source.net.b.data = torch.tensor([25.5, 0.0], dtype=torch.float64)
    x, y, threat = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0 if targeted else 1]), Linf(0.1, targeted)

    def outcome(lam: float) -> tuple[int, bool]:
        """The label of the classes, and whether it is rejected."""
        attack = Iterated(threat, steps=40, step_size=0.01, objective=Undetected(lam, 0.01, once_fooled, threat), keep="best")
        x_adv = attack(source, x, y)
        return int(source.net(x_adv).argmax(1)), bool(source.score(x_adv) > source.threshold)

    assert int(source(x).argmax(1)) == 1
    assert outcome(0.0) == (0, True), "without the second term it is rejected"
    assert outcome(1000.0) == (0, False)


def test_a_watched_boundary_is_crossed_once_fooled_counts_alone() -> None:
    """The score is highest at the boundary, as where answers change fast: the plain sum never gets there, and the other gets across."""

    class Ridge(Watched):
        def score(self, x: Tensor) -> Tensor:
            return (-(400 * (x[:, 0] - 0.48).square())).exp()

    source = Ridge(torch.tensor([[0.0], [40.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), threshold=0.3)
    source.net.b.data = torch.tensor([0.48 * 40, 0.0], dtype=torch.float64)
    x, y = torch.tensor([[0.56]], dtype=torch.float64), torch.tensor([1])
    for once_fooled, label in ((False, 1), (True, 0)):
        objective = Undetected(100.0, 0.0, once_fooled)
        x_adv = Iterated(Linf(0.2), steps=40, step_size=0.01, objective=objective, keep="best")(source, x, y)
        assert int(source.net(x_adv).argmax(1)) == label
        assert float(source.score(x_adv)) <= 0.3


def test_around_a_source_that_rejects_nothing_it_is_the_plain_attack() -> None:
    net = Linear(normals(4, 128) / 4)
    got = Iterated(Linf(0.05), objective=Undetected())(Lenient(net), X, Y)
    assert torch.equal(got, I_FGSM(Linf(0.05))(net, X, Y))
    assert isinstance(subject("objectives", "Undetected").sample, OnDetector), "the contract judges it on a detector"


@pytest.mark.parametrize("keep", ["last", "best"])
def test_counts(keep: str) -> None:
    source, objective = Watched(normals(4, 128) / 4, normals(128, key=3) / 10, 0.1), Undetected()
    assert (objective.gradients(7), objective.queries(7), objective.stochastic) == (14, 7, False)
    assert isinstance(objective, SourceObjective)
    assert isinstance(source, Detecting)
    attack = Iterated(Linf(0.05), steps=3, objective=objective, keep=keep)
    assert build(Iterated, to_dict(attack), "attack", {}, {}) == attack
    attack(source, X, Y)
    assert source.asked.count("score") == source.asked.count("logits") == (3 if keep == "last" else 6)
    assert len(source.asked) <= attack.gradients + attack.queries


def test_a_study_says_which_way_it_goes() -> None:
    aimed = Linf(0.05, targeted=True)
    found = build(Iterated, {"objective": {"type": "Undetected"}}, "attack", {"threat": aimed}, {})
    assert found.objective == Undetected(threat=aimed)


def test_refusals() -> None:
    net = Linear(normals(4, 128) / 4)
    with pytest.raises(ModelRefused, match=r"needs a source with `score` and `threshold`, but got Linear.*Squeezing"):
        Iterated(Linf(0.05), objective=Undetected())(net, X, Y)
    with pytest.raises(DataError, match="below the model's 5 classes, got 5"):
        Iterated(Linf(0.05), objective=Undetected())(Lenient(net), X, Y + 1)
    for fields in ({"lam": -1.0}, {"slack": -0.1}, {"lam": float("nan")}):
        with pytest.raises(SpecError, match="must be a finite number"):
            Undetected(**fields)
