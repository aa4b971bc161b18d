"""Auto-PGD: closed forms on linear models, the schedule of the paper, its count of gradients, and that it beats PGD at equal cost."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import Tensor, nn
from victims import Counting, Linear, TinyCNN, images, normals, two_class

from firedoor import losses, seed
from firedoor.attacks import APGD, APGD_CE, APGD_DLR, APGD_T, I_FGSM, PGD, SignNoise, Square
from firedoor.attacks.auto_pgd import checkpoints
from firedoor.attacks.targeted_auto_pgd import targeted_dlr
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Attack, Returned
from firedoor.threat import L0, L1, L2, Linf, Threat

D = 18
W = normals(D, key=1)
MODEL = two_class(W, 0.3 - float(W.sum()) / 2)
CNN = TinyCNN().eval()
X, Y = images(6), torch.tensor([0, 1, 2, 3, 0, 1])
EVERY = [APGD, APGD_CE, APGD_DLR, APGD_T]


def points(low: float, high: float, n: int = 24) -> Tensor:
    return low + (high - low) * torch.rand(n, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def labels(model: Linear, x: Tensor) -> Tensor:
    """Half of them wrong from the start: they are attacked like any other."""
    y = model(x).argmax(1)
    y[::2] = 1 - y[::2]
    return y


def fall(attack: Attack, model: Linear, x: Tensor, y: Tensor) -> Tensor:
    return model.margin(x, y) - model.margin(attack(model, x, y), y)


@pytest.mark.parametrize("make", [APGD, APGD_CE, APGD_T, lambda t, steps: APGD(t, steps, objective="margin")])
@pytest.mark.parametrize("steps", [2, 10, 25])
def test_linf_ends_at_the_margin_minus_eps_times_the_l1_norm(make: type[APGD], steps: int) -> None:
    x = points(0.3, 0.7)
    missing = 1 - fall(make(Linf(0.05), steps=steps), MODEL, x, labels(MODEL, x)) / (0.05 * W.abs().sum())
    assert missing.abs().max() < 1e-9, f"misses the optimum by {missing.abs().max():.3g} of it"


@pytest.mark.parametrize("make", [APGD, APGD_T])
def test_linf_uses_each_pixel_up_to_the_box(make: type[APGD]) -> None:
    x = points(0.0, 1.0)
    y = labels(MODEL, x)
    room = torch.where(torch.where(y[:, None] == 1, -W, W) > 0, 1 - x, x).clamp_max(0.4)
    missing = 1 - fall(make(Linf(0.4), steps=10), MODEL, x, y) / (W.abs() * room).sum(1)
    assert missing.abs().max() < 1e-9


@pytest.mark.parametrize("make", [APGD, APGD_CE, APGD_T])
def test_l2_comes_within_a_percent_of_the_margin_minus_eps_times_the_l2_norm(make: type[APGD]) -> None:
    x = points(0.3, 0.7)
    missing = 1 - fall(make(L2(0.2), steps=40), MODEL, x, labels(MODEL, x)) / (0.2 * W.square().sum().sqrt())
    assert missing.min() > -1e-9
    assert missing.max() < 0.01, f"misses {missing.max():.3g} of the optimum"


@pytest.mark.parametrize("make", EVERY[:2] + EVERY[3:])
@pytest.mark.parametrize("eps", [0.5, 2.0, 6.0])
def test_l1_fills_the_room_of_the_heaviest_pixels(make: type[APGD], eps: float) -> None:
    """Of 18 pixels one or two, four, or most; a step that saw no box would stand at the first ones."""
    x = points(0.0, 1.0)
    y = labels(MODEL, x)
    order = W.abs().argsort(descending=True)
    room = torch.where(torch.where(y[:, None] == 1, -W, W) > 0, 1 - x, x)[:, order]
    spent = torch.minimum(room, (eps - (room.cumsum(1) - room)).clamp_min(0))
    missing = 1 - fall(make(L1(eps), steps=40), MODEL, x, y) / (spent * W.abs()[order]).sum(1)
    assert missing.min() > -1e-9
    assert missing.max() < 0.01, f"misses {missing.max():.3g} of the optimum"


def test_l1_steps_get_sparser_with_the_best_point() -> None:
    """The heaviest of 200 pixels hold all of eps in the end, though the first steps move 40 of them alike."""
    w = normals(200, key=3)
    seen: list[Tensor] = []

    class Spy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    model = Spy(torch.stack((-w, w)) / 2)
    x = torch.full((1, 200), 0.5, dtype=torch.float64)
    APGD(L1(2.0), steps=50)(model, x, model(x).argmax(1))
    changed = [int((point != x).sum()) for point in seen[1:]]
    assert changed[0] > 100, "a random start"
    assert min(changed) == 4
    assert changed[-1] <= 6


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)])
def test_noise_and_the_random_start_are_far_from_the_optimum(threat: Threat) -> None:
    x = points(0.3, 0.7)
    best = 0.05 * W.abs().sum() if threat.norm == "Linf" else 0.2 * W.square().sum().sqrt()
    assert (fall(SignNoise(threat), MODEL, x, labels(MODEL, x)) / best).mean() < 0.5


@pytest.mark.parametrize("make", EVERY)
def test_k_classes_success_iff_eps_exceeds_the_least_distance(make: type[APGD]) -> None:
    """Margins of linear models: distance to class k is (f_y - f_k) / |w_y - w_k|_1. DLR and CE may prefer a farther class."""
    model = Linear(normals(5, D, key=11))
    x = points(0.3, 0.7)
    y = model(x).argmax(1)
    logits, w = model(x).detach(), model.w.detach()
    gap = (logits.gather(1, y[:, None]) - logits) / (w[y][:, None] - w[None]).abs().sum(2).clamp_min(1e-9)
    least = gap.scatter(1, y[:, None], torch.inf).amin(1)
    for i in range(0, len(x), 4):
        one, label = x[i : i + 1], y[i : i + 1]
        below = make(Linf(0.999 * float(least[i])), steps=10)(model, one, label)
        assert model(below).argmax(1) == label, "no attack may succeed below the least distance"
        if make is APGD_T and float(least[i]) < 0.29:
            above = make(Linf(1.001 * float(least[i])), steps=10)(model, one, label)
            assert model(above).argmax(1) != label, "one of the targets is the nearest class, and its run is exact"


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]


def test_steps_begin_at_two_eps_carry_momentum_and_halve_after_a_checkpoint_without_rises() -> None:
    """|z| - shaped loss: the first step of 2 eps jumps over the peak, so that the step size must fall; seen from the points asked."""
    asked: list[Tensor] = []

    class Peak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.detach().clone())
            height = -(x - 0.52).abs().sum(1)
            return torch.stack((-height, height), dim=1)

    x, y = torch.full((1, 1), 0.5, dtype=torch.float64), torch.tensor([0])
    x_adv = APGD(Linf(0.1), steps=100, objective="margin")(Peak(), x, y)
    path = torch.cat(asked)[:, 0]
    assert len(path) == 101
    assert abs(float(x_adv) - 0.52) < 0.005, "the step size never fell"
    first = float((path[1] - path[0]).abs())
    assert abs(float(path[1]) - 0.6) < 1e-9 or abs(float(path[1]) - 0.4) < 1e-9, (
        f"the first step is 2 eps, cut to the ball: {first}"
    )
    late = (path[-5:] - path[-6:-1]).abs().max()
    assert late < 0.02, f"steps of the end: {late:.3g}"
    z = path[1] + 0.2 * (1 if path[1] < 0.52 else -1)
    z = z.clamp(0.4, 0.6)
    want = (path[1] + 0.75 * (z - path[1]) + 0.25 * (path[1] - path[0])).clamp(0.4, 0.6)
    assert abs(float(path[2] - want)) < 1e-9, "momentum of the second step"


def test_every_example_has_a_schedule_of_its_own() -> None:
    """Alone or among others, the same bits of outcome."""
    for attack in (
        APGD(Linf(0.1), steps=12),
        APGD(L2(0.5), steps=12, objective="dlr"),
        APGD(L1(2.0), steps=12),
        APGD_T(Linf(0.1), steps=6),
    ):
        ids = tuple("abcdef")
        with seed.streams(3, ids):
            whole = attack(CNN, X, Y)
        for i in range(6):
            with seed.streams(3, ids[i]):
                alone = attack(CNN, X[i : i + 1], Y[i : i + 1])
            assert ((alone - whole[i : i + 1]).abs() > 1e-9).double().mean() <= 1e-3, f"{attack}: example {i} depends on its batch"


@pytest.mark.parametrize("make", EVERY)
def test_declared_gradients_and_queries_are_those_asked_for(make: type[APGD]) -> None:
    for changes in ({"steps": 1}, {"steps": 7}, {"steps": 3, "restarts": 2}):
        attack, model = make(Linf(0.1), **changes), Counting(TinyCNN())
        if make is APGD_T:
            attack = APGD_T(Linf(0.1), classes=3, **changes)  # the model has 3 other classes
        attack(model, X, Y)
        again = Counting(TinyCNN())
        replace(attack, threat=L1(2.0))(again, X, Y)
        assert (again.backward_rows, again.plain_rows) == (model.backward_rows, model.plain_rows), (
            f"{changes}: L1 costs another number"
        )
        assert model.forward_rows == attack.gradients * len(X), f"{changes}: {model.forward_rows / len(X)} gradients per example"
        assert model.backward_rows == attack.gradients * len(X)
        assert model.plain_rows == attack.queries * len(X)
    attack, model = APGD_T(Linf(0.1), steps=2), Counting(TinyCNN())
    attack(model, X, Y)
    assert model.backward_rows == 3 * 2 * len(X) < attack.gradients * len(X), "at most"


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5), L1(2.0)], ids=lambda t: t.norm)
@pytest.mark.parametrize("make", EVERY)
def test_output_is_inside_of_its_own_and_never_clean(make: type[APGD], threat: Threat) -> None:
    for dtype in (torch.float32, torch.float64):
        x = images(6, dtype=dtype)
        x[0, :, :4], x[1, :, 4:] = 0, 1
        before = x.clone()
        x_adv = make(threat, steps=5)(CNN, x, Y)
        threat.check(x_adv, x)
        assert x_adv.dtype == dtype
        assert float(x_adv.min()) >= 0
        assert float(x_adv.max()) <= 1
        assert torch.equal(x, before)
        assert threat.size(x_adv - x).min() > threat.eps / 10, "a failed example must not come back clean"
        assert torch.equal(make(type(threat)(0.0), steps=3)(CNN, x, Y), x), "eps 0 returns x"
        assert make(threat)(CNN, x[:0], Y[:0]).shape == (0, 2, 8, 8)


def test_the_best_loss_of_all_restarts_is_returned() -> None:
    """The loss of the output is the largest of those the model was asked for."""
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = CNN(x)
            seen.append(losses.cross_entropy(logits.detach(), Y))
            return logits

    x_adv = APGD(Linf(0.1), steps=8, restarts=3)(Spy(), X, Y)
    reached = losses.cross_entropy(CNN(x_adv).detach(), Y)
    assert len(seen) == 3 * 9
    assert torch.allclose(reached, torch.stack(seen).amax(0), atol=1e-12)


def test_of_all_targets_the_largest_margin_is_returned() -> None:
    best: list[Tensor] = []
    for k in range(3):
        with seed.streams(0, "abcdef"):
            best.append(losses.margin(CNN(APGD_T(Linf(0.1), steps=6, classes=k + 1)(CNN, X, Y)).detach(), Y))
    assert (best[1] >= best[0] - 1e-12).all()
    assert (best[2] >= best[1] - 1e-12).all()
    assert (best[2] > best[0] + 1e-9).any(), "the second and third targets never help"


def test_targeted_dlr_is_its_formula_and_falls_back_below_four_classes() -> None:
    z, y, t = torch.tensor([[5.0, 1.0, 3.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([3])
    assert torch.allclose(targeted_dlr(z, y, t), torch.tensor([(2.0 - 5.0) / (5.0 - (2.0 + 1.0) / 2)]))
    assert torch.allclose(targeted_dlr(7 * z + 4, y, t), targeted_dlr(z, y, t)), "shift and scale"
    assert torch.allclose(targeted_dlr(z[:, :3], y, torch.tensor([2])), torch.tensor([-2.0]))


def test_targeted_threats_work_or_are_refused() -> None:
    model = Linear(normals(4, D, key=12) / 3)
    x = points(0.3, 0.7)
    y_target = model(x).argmin(1)
    for objective in ("cross_entropy", "margin"):
        x_adv = APGD(Linf(0.1, targeted=True), steps=10, objective=objective)(model, x, y_target)
        assert (model.margin(x_adv, y_target) > model.margin(x, y_target)).all()
    for refused in (lambda t: APGD(t, objective="dlr"), APGD_DLR, APGD_T):
        with pytest.raises(SpecError, match="must not be targeted"):
            refused(Linf(0.1, targeted=True))
    assert not APGD_DLR(Linf(0.1)).semantics.targeted
    assert not APGD_T(Linf(0.1)).semantics.targeted


def test_refusals() -> None:
    for make in EVERY:
        with pytest.raises(SpecError, match="needs a Linf, L2 or L1 threat, got L0"):
            make(L0(3))
        with pytest.raises(SpecError, match="steps must be a whole number"):
            make(Linf(0.1), steps=0)
        with pytest.raises(SpecError, match="restarts must be a whole number"):
            make(Linf(0.1), restarts=0)
        assert make(Linf(0.1)).semantics.returned is Returned.BEST_LOSS
        with pytest.raises(DataError, match="below the model's 4 classes"):
            make(Linf(0.1), steps=1)(CNN, X, Y + 3)
        with pytest.raises(ModelRefused, match="must return logits"):
            make(Linf(0.1), steps=1)(lambda x: torch.zeros(6), X, Y)
    with pytest.raises(SpecError, match="objective must be one of"):
        APGD(Linf(0.1), objective="logit")
    with pytest.raises(SpecError, match="needs 3 classes or more, got 2"):
        APGD_DLR(Linf(0.1))(MODEL, points(0.3, 0.7), torch.zeros(24, dtype=torch.int64))
    with pytest.raises(SpecError, match="classes must be a whole number"):
        APGD_T(Linf(0.1), classes=0)
    assert APGD_DLR(Linf(0.1)) == APGD(Linf(0.1), objective="dlr")
    assert APGD_CE(Linf(0.1)) == APGD(Linf(0.1))


@pytest.mark.parametrize("kind", ["zero", "nan", "inf", "none"])
def test_a_dead_gradient_freezes_nothing(kind: str) -> None:
    linear = Linear(torch.ones(2, 128) * torch.tensor([[0.05], [-0.05]]))

    class Dead(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 2:
                return linear(x)
            logits = linear(x.detach())
            if kind == "zero":
                return logits + 0 * x.flatten(1)[:, :2]
            if kind == "nan":
                return logits + (x - x).flatten(1)[:, :2].sqrt()
            return logits + torch.inf if kind == "inf" else logits

    y = torch.zeros(6, dtype=torch.int64)
    for threat, best in ((Linf(0.1), 0.1 * 0.1 * 128), (L2(0.3), 0.1 * 0.3 * 128**0.5), (L1(3.0), 0.1 * 3.0)):
        x_adv = APGD(threat, steps=8)(Dead(), X, y)
        threat.check(x_adv, X)
        assert (linear.margin(X, y) - linear.margin(x_adv, y)).min() > 0.2 * best


@cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small CNN trained on 1,000 digits, and 120 others that it gets right."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.randperm(1000).split(100):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()
    net.eval()
    right = net(x[1000:]).argmax(1) == y[1000:]
    assert right.double().mean() > 0.85
    return net, x[1000:][right][:120], y[1000:][right][:120]


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6), L1(1.5)], ids=lambda t: t.norm)
def test_it_reaches_a_higher_loss_than_pgd_at_equal_gradients(threat: Threat) -> None:
    """Paired, per example, best iterate of both; ties are left out. The margin is what is raised, so that nothing saturates."""
    net, x, y = digits()
    worth = lambda x_adv: losses.margin(net(x_adv).detach(), y)  # noqa: E731
    one = worth(APGD(threat, steps=40, objective="margin")(net, x, y))
    other = worth(PGD(threat, steps=40, objective="margin", keep="best")(net, x, y))
    more, less = int((one > other + 1e-5).sum()), int((one < other - 1e-5).sum())
    assert binomtest(more, more + less, 0.5, "less").pvalue > 0.01 if more + less else True, f"{more} higher, {less} lower than PGD"
    assert one.mean() >= other.mean() - 0.02 * other.std(), f"mean margin {one.mean():.4f} against {other.mean():.4f}"
    noise = worth(SignNoise(threat)(net, x, y))
    assert (one > noise).all()


def test_l1_white_boxes_fool_as_many_as_random_search_and_more_than_noise() -> None:
    """Random search needs no gradient: a gradient attack that does worse is broken."""
    net, x, y = digits()
    fooled = lambda a: int((net(a(net, x, y)).argmax(1) != y).sum())  # noqa: E731
    for threat in (L1(1.5), L1(3.0)):
        search, noise = fooled(Square(threat, 300)), fooled(SignNoise(threat))
        for attack in (APGD(threat, steps=40), PGD(threat, steps=20, restarts=2, keep="best"), I_FGSM(threat)):
            assert fooled(attack) >= search > noise, f"{attack}: {fooled(attack)}, random search {search}, noise {noise}"


def test_l0_pgd_fools_as_many_as_its_steps_without_a_random_start() -> None:
    net, x, y = digits()
    fooled = lambda a: int((net(a(net, x, y)).argmax(1) != y).sum())  # noqa: E731
    for eps in (2, 4):
        restarted = PGD(L0(eps), steps=20, restarts=3, keep="best")
        assert fooled(restarted) >= fooled(I_FGSM(L0(eps))) > fooled(SignNoise(L0(eps))) + 20


def test_targets_find_at_least_what_one_run_finds() -> None:
    net, x, y = digits()
    x, y, threat = x[:60], y[:60], Linf(0.1)
    fooled = lambda a: int((net(a(net, x, y)).argmax(1) != y).sum())  # noqa: E731
    assert fooled(APGD_T(threat, steps=20)) >= fooled(APGD_DLR(threat, steps=20))
