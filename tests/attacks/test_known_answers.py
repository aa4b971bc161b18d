"""Linear models, where the best perturbation, and what it does to another linear model, have a formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor
from victims import LOOPS, Linear, make, normals, two_class

from firedoor import seed
from firedoor.attacks import DI_FGSM, EOT, FGSM, I_FGSM, MI_FGSM, NI_FGSM, PGD, TI_FGSM, VMI_FGSM, Iterated, SignNoise
from firedoor.protocols import Attack, Classifier
from firedoor.threat import L0, L1, L2, Linf, Threat

D = 18
TRANSFORMING = ("DI_FGSM", "TI_FGSM")  # may fall short of the optimum on purpose; never go beyond
EXACT = [name for name in LOOPS if name not in TRANSFORMING]


def inside(n: int = 40) -> Tensor:
    """Inputs with room 0.3 on every side."""
    return 0.3 + 0.4 * torch.rand(n, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def everywhere(n: int = 40) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def labelled(model: Linear, x: Tensor) -> Tensor:
    """Half of the labels are the model's own, half are wrong: an attack treats both alike."""
    y = model(x).argmax(1)
    y[::2] = 1 - y[::2]
    return y


@dataclass(frozen=True)
class Nothing:
    threat: Threat

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return x.clone()


def shortfall(attack: Attack, model: Linear, x: Tensor, optimum: Tensor | float) -> Tensor:
    """What is left of the optimal fall of the margin, as a share of it."""
    y = labelled(model, x)
    return 1 - (model.margin(x, y) - model.margin(attack(model, x, y), y)) / optimum


W = normals(D, key=1)
MODEL = two_class(W, 0.3 - float(W.sum()) / 2)


@pytest.mark.parametrize("name", EXACT)
def test_linf_attacks_end_at_the_margin_minus_eps_times_the_l1_norm(name: str) -> None:
    missing = shortfall(make(name, Linf(0.05), steps=10), MODEL, inside(), 0.05 * W.abs().sum())
    assert missing.abs().max() < 1e-9, f"{name} misses the optimum by {missing.abs().max():.3g} of it"


@pytest.mark.parametrize("name", EXACT)
def test_linf_attacks_use_each_pixel_up_to_the_box(name: str) -> None:
    x = everywhere()
    y = labelled(MODEL, x)
    up = torch.where(y[:, None] == 1, -W, W) > 0
    room = torch.where(up, 1 - x, x).clamp_max(0.4)
    missing = shortfall(make(name, Linf(0.4), steps=10), MODEL, x, (W.abs() * room).sum(1))
    assert missing.abs().max() < 1e-9, f"{name} misses the optimum in the box by {missing.abs().max():.3g} of it"


@pytest.mark.parametrize("name", [n for n in EXACT if n != "PGD"])
def test_l2_attacks_end_at_the_margin_minus_eps_times_the_l2_norm(name: str) -> None:
    missing = shortfall(make(name, L2(0.2), steps=10), MODEL, inside(), 0.2 * torch.linalg.vector_norm(W))
    assert missing.abs().max() < 1e-9, f"{name} misses the optimum by {missing.abs().max():.3g} of it"


def test_l2_pgd_comes_within_one_percent_from_a_random_start() -> None:
    """On the sphere the part of delta across W shrinks by 1 / (1 + step_size/eps) a step: 1.25^-20 = 0.012 of it is left."""
    missing = shortfall(PGD(L2(0.2), steps=20, step_size=0.05), MODEL, inside(), 0.2 * torch.linalg.vector_norm(W))
    assert missing.min() > -1e-9
    assert missing.max() < 0.01


def test_l1_steps_spend_the_budget_on_the_heaviest_pixel() -> None:
    missing = shortfall(I_FGSM(L1(0.25)), MODEL, inside(), 0.25 * W.abs().max())
    assert missing.abs().max() < 1e-9


@pytest.mark.parametrize("attack", [FGSM(L0(3)), I_FGSM(L0(3)), MI_FGSM(L0(3))])
def test_l0_steps_use_the_whole_room_of_the_pixels_with_most_to_gain(attack: Attack) -> None:
    x = inside()
    up = torch.where(labelled(MODEL, x)[:, None] == 1, -W, W) > 0
    optimum = (W.abs() * torch.where(up, 1 - x, x)).topk(3).values.sum(1)
    assert shortfall(attack, MODEL, x, optimum).abs().max() < 1e-9


WIDE = normals(256, key=7)  # 256 pixels: eps 12 fills more than twenty of them


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("threat", [L1(0.5), L1(2.0), L1(12.0), L0(1), L0(10)], ids=str)
def test_l1_and_l0_attacks_fill_pixel_after_pixel_up_to_the_box(name: str, threat: Threat) -> None:
    """With their own steps: L1 fills the heaviest pixels in turn, L0 takes those with the largest weight times room."""
    model = two_class(WIDE, -float(WIDE.sum()) / 2)
    x = 0.3 + 0.4 * torch.rand(8, 256, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    up = torch.where(labelled(model, x)[:, None] == 1, -WIDE, WIDE) > 0
    order = WIDE.abs().argsort(descending=True)
    room = torch.where(up, 1 - x, x)[:, order]
    spent = torch.minimum(room, (threat.eps - (room.cumsum(1) - room)).clamp_min(0))
    gain = WIDE.abs()[order] * (spent if threat.norm == "L1" else room)
    optimum = gain.sum(1) if threat.norm == "L1" else gain.topk(int(threat.eps)).values.sum(1)
    missing = shortfall(make(name, threat, steps=10), model, x, optimum)
    assert missing.min() > -1e-9
    assert missing.max() < 0.01, f"{name} misses {missing.max():.3g} of the optimum"


@pytest.mark.parametrize("null", [Nothing(Linf(0.05)), SignNoise(Linf(0.05)), Nothing(L2(0.2)), SignNoise(L2(0.2))])
def test_doing_nothing_and_noise_are_far_from_the_optimum(null: Attack) -> None:
    best = 0.05 * W.abs().sum() if null.threat.norm == "Linf" else 0.2 * torch.linalg.vector_norm(W)
    missing = shortfall(null, MODEL, inside(), best)
    assert missing.mean() > 0.5, "the tests above would pass for an attack that does nothing"


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)])
@pytest.mark.parametrize("part", [DI_FGSM, TI_FGSM])
def test_transformed_gradients_never_go_beyond_the_optimum_and_beat_noise(part: type[Iterated], threat: Threat) -> None:
    w = normals(2, 8, 8, key=5).cumsum(1).cumsum(2)  # smooth, as a filter of images is
    model = two_class(w.flatten())
    x = 0.3 + 0.4 * torch.rand(10, 2, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    best = threat.eps * (w.abs().sum() if threat.norm == "Linf" else torch.linalg.vector_norm(w))
    missing = shortfall(part(threat), model, x, best)
    assert missing.min() > -1e-9
    assert missing.mean() < 0.5
    assert missing.mean() < shortfall(SignNoise(threat), model, x, best).mean() / 2


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("power", ["below", "above"])
def test_success_iff_eps_exceeds_the_distance_to_the_boundary(name: str, power: str) -> None:
    """Two classes that matter and a third far below them, so that all three objectives point at the same boundary."""
    model = Linear(torch.stack((-W, W, normals(D, key=9) / 50)) / 2, torch.tensor([float(W.sum()) / 4, -float(W.sum()) / 4, -60.0]))
    x = inside()
    y = model(x).argmax(1)
    distance = model.margin(x, y) / W.abs().sum()
    for i in range(len(x)):
        if distance[i] > 0.29:  # no room
            continue
        eps = float(distance[i]) * (0.999 if power == "below" else 1.001)
        attack = make(name, Linf(eps), steps=5)
        fooled = bool(model(attack(model, x[i : i + 1], y[i : i + 1])).argmax(1) != y[i])
        assert fooled == (power == "above"), f"{name}, example {i}: eps/distance {eps / distance[i]:.4f}, fooled {fooled}"


@pytest.mark.parametrize(
    ("objective", "targeted"),
    [("cross_entropy", False), ("margin", False), ("dlr", False), ("cross_entropy", True), ("margin", True)],
)
def test_no_attack_on_k_classes_succeeds_below_the_least_distance(objective: str, targeted: bool) -> None:
    model = Linear(normals(5, D, key=11))
    x = inside()
    y = model(x).argmax(1)
    logits = model(x).detach()
    gap = (logits.gather(1, y[:, None]) - logits) / (model.w[y][:, None] - model.w[None]).abs().sum(2).detach().clamp_min(1e-9)
    least, nearest = gap.scatter(1, y[:, None], torch.inf).min(1)
    for i in range(len(x)):
        label = nearest[i : i + 1] if targeted else y[i : i + 1]
        below = Iterated(Linf(float(least[i]) * 0.999, targeted), objective=objective, random_start=True, keep="best", restarts=2)
        assert model(below(model, x[i : i + 1], label)).argmax(1) == y[i]


@pytest.mark.parametrize("attack", [FGSM, I_FGSM, MI_FGSM, NI_FGSM, VMI_FGSM])
def test_transfer_between_linear_models_is_exact(attack: type[Iterated]) -> None:
    source, target = MODEL, two_class(v := normals(D, key=2), 0.1)
    x = inside()
    y = labelled(source, x)
    fall = target.margin(x, y) - target.margin(attack(Linf(0.05))(source, x, y), y)
    assert torch.allclose(fall, 0.05 * (v @ W.sign()).expand(len(x)), atol=1e-9)
    fall = target.margin(x, y) - target.margin(attack(L2(0.2))(source, x, y), y)
    assert torch.allclose(fall, (0.2 * (v @ W) / torch.linalg.vector_norm(W)).expand(len(x)), atol=1e-9)


@pytest.mark.parametrize("attack", [FGSM(Linf(0.02)), MI_FGSM(Linf(0.02)), PGD(Linf(0.02))])
@pytest.mark.parametrize("key", [20, 21, 22])
def test_transfer_rate_between_gaussian_classes_is_the_closed_form(attack: Attack, key: int) -> None:
    """x given y is N(1/2 + y mu, sigma^2), y = +-1; margins are normal, so the share of fooled among the right ones is known."""
    n, sigma, eps = 4000, 0.03, attack.threat.eps
    mu = 0.02 * normals(D, key=key).sign()
    w_s, w_t = mu + 0.01 * normals(D, key=key + 50), mu + 0.01 * normals(D, key=key + 100)
    y = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(key))
    x = 0.5 + (2 * y[:, None] - 1) * mu + sigma * normals(n, D, key=key + 150)
    assert float(x.min()) > 0.02
    assert float(x.max()) < 0.98
    source, target = two_class(w_s, -float(w_s.sum()) / 2), two_class(w_t, -float(w_t.sum()) / 2)
    right = target(x).argmax(1) == y
    fooled = right & (target(attack(source, x, y)).argmax(1) != y)
    m0, s, lost = float(w_t @ mu), sigma * float(torch.linalg.vector_norm(w_t)), eps * float(w_t @ w_s.sign())
    truth = (norm.cdf((lost - m0) / s) - norm.cdf(-m0 / s)) / norm.cdf(m0 / s)
    interval = binomtest(int(fooled.sum()), int(right.sum())).proportion_ci(0.999)
    assert 0.02 < truth < 0.98
    assert interval.low <= truth <= interval.high, f"rate {int(fooled.sum())}/{int(right.sum())}, closed form {truth:.4f}"


def test_corner_cases_of_linear_transfer() -> None:
    x = inside()
    v = W.sign() * torch.tensor([1.0, -1.0] * (D // 2), dtype=torch.float64)  # v . sign(W) = 0
    y = labelled(MODEL, x)
    x_adv = MI_FGSM(Linf(0.05))(MODEL, x, y)
    indifferent, opposite = two_class(v), two_class(-W)
    assert torch.allclose(indifferent.margin(x_adv, y), indifferent.margin(x, y), atol=1e-12)
    assert torch.allclose(opposite.margin(x_adv, y) - opposite.margin(x, y), 0.05 * W.abs().sum().expand(len(x)), atol=1e-9)


@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
@pytest.mark.parametrize("threat", [Linf(0.1, targeted=True), L2(0.3, targeted=True)])
def test_targeted_attacks_move_towards_the_target_class(objective: str, threat: Threat) -> None:
    model = Linear(normals(4, D, key=12) / 3)
    x = inside()
    y_target = model(x).argmin(1)
    x_adv = Iterated(threat, objective=objective, parts=(), steps=10)(model, x, y_target)
    gained = model.margin(x_adv, y_target) - model.margin(x, y_target)
    assert gained.min() > 0, f"the margin of the target class fell by {-float(gained.min()):.3g}"
    away = Iterated(replace(threat, targeted=False), objective=objective)(model, x, y_target)
    assert (model.margin(away, y_target) - model.margin(x, y_target)).max() < 0


def test_l2_pgd_does_not_depend_on_the_scale_of_the_logits() -> None:
    x, attack = inside(), I_FGSM(L2(0.2))
    small = Linear(MODEL.w.detach() * 1e-8, MODEL.b.detach() * 1e-8)
    y = labelled(MODEL, x)
    assert torch.allclose(attack(MODEL, x, y), attack(small, x, y), atol=1e-9)


def test_eot_averages_the_noise_of_a_random_source() -> None:
    """Logits get a random slope three times as steep as the true one: one draw points anywhere, the mean of many at the truth."""

    def noisy(x: Tensor) -> Tensor:
        slope = W + 3 * float(W.std()) * seed.normal(x)
        logit = (x * slope).sum(1)
        return torch.stack((-logit, logit), dim=1) / 2

    x = inside()
    best = 0.05 * W.abs().sum()
    one = shortfall(_Through(noisy, Iterated(Linf(0.05), objective="margin", steps=1)), MODEL, x, best).mean()
    many = shortfall(_Through(noisy, Iterated(Linf(0.05), objective="margin", steps=1, parts=(EOT(100),))), MODEL, x, best).mean()
    assert many < 0.15
    assert one > 2 * many


@dataclass(frozen=True)
class _Through:
    source: Classifier
    attack: Attack

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return self.attack(self.source, x, y)
