"""Projections, steepest directions, rounding and budgets, against scipy and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

from firedoor import seed
from firedoor.errors import BudgetError, DataError, SpecError
from firedoor.spec import to_dict
from firedoor.threat import L0, L1, L2, Linf, levels

BALLS = (Linf, L2, L1, L0)
SHAPES = ((7,), (1, 3, 3), (3, 4, 4))


def some(n: int, shape: tuple[int, ...], seed: int, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """x in the box (a tenth of the pixels on its walls), and z anywhere: (n, *shape) float64 each."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, *shape))
    x[rng.random(x.shape) < 0.05] = 0.0
    x[rng.random(x.shape) < 0.05] = 1.0
    return torch.from_numpy(x), torch.from_numpy(x + spread * rng.standard_normal(x.shape))


def budget(ball: type, d: int, u: float) -> float:
    """A radius that binds in most cases: u in [0,1]."""
    return {Linf: 0.5 * u, L2: 0.6 * u * math.sqrt(d), L1: 0.4 * u * d, L0: float(round(u * d / 2))}[ball]


def nearest_l2(x: np.ndarray, z: np.ndarray, eps: float) -> np.ndarray:
    """The root of |clip(d / (1 + m), -x, 1 - x)| = eps, found between the m where pixels reach their wall (no bisection)."""
    d, low, high = z - x, -x, 1 - x

    def cut(m: float) -> np.ndarray:
        return np.clip(d / (1 + m), low, high)

    if np.linalg.norm(cut(0.0)) <= eps:
        return x + cut(0.0)
    wall = np.where(d > 0, high, low)
    with np.errstate(divide="ignore", invalid="ignore"):
        leaves = np.where(wall != 0, d / wall - 1, np.inf)  # for a larger m the pixel is off its wall
    for at in sorted({0.0, *leaves[(leaves > 0) & np.isfinite(leaves)]}, reverse=True):
        if np.linalg.norm(cut(at)) >= eps:  # the root is above `at`, and no pixel changes its state up to the next break
            free = (leaves <= at) & (d != 0)
            held = np.linalg.norm(wall[~free & (d != 0)])
            return x + cut(np.linalg.norm(d[free]) / math.sqrt(eps**2 - held**2) - 1)
    raise AssertionError("the norm at m = 0 is above eps")


def nearest_l1(x: np.ndarray, z: np.ndarray, eps: float) -> np.ndarray:
    """sum clip(|d| - m, 0, room) is piecewise linear in m: sort the breaks, solve the one linear piece that holds eps."""
    d = z - x
    size, room = np.abs(d), np.where(d > 0, 1 - x, x)

    def cut(m: float) -> np.ndarray:
        return np.clip(size - m, 0, room)

    if cut(0.0).sum() <= eps:
        return x + np.sign(d) * cut(0.0)
    breaks = np.unique(np.concatenate([[0.0], size.ravel(), (size - room).ravel()]).clip(0))
    sums = np.array([cut(m).sum() for m in breaks])
    i = int(np.nonzero(sums >= eps)[0][-1])
    share = (sums[i] - eps) / (sums[i] - sums[i + 1]) if i + 1 < len(breaks) else 0.0
    m = breaks[i] + share * (breaks[i + 1] - breaks[i]) if i + 1 < len(breaks) else breaks[i]
    return x + np.sign(d) * cut(m)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ball", "reference"), [(L2, nearest_l2), (L1, nearest_l1)])
def test_projection_equals_the_root_of_the_dual(ball: type, reference: object, shape: tuple[int, ...]) -> None:
    x, z = some(50, shape, seed=len(shape))
    radii = np.random.default_rng(7).random(50)
    for i in range(50):
        threat = ball(budget(ball, x[i].numel(), radii[i]))
        got = threat.project(z[i : i + 1], x[i : i + 1])[0].numpy()
        wanted = reference(x[i].numpy(), z[i].numpy(), threat.eps)
        assert np.abs(got - wanted).max() < 1e-9, f"case {i}: {threat} is {np.abs(got - wanted).max():.2g} from the dual's root"


@pytest.mark.parametrize(("ball", "case"), list(itertools.product((L2, L1, Linf), range(8))))
def test_projection_equals_a_quadratic_programme(ball: type, case: int) -> None:
    """min |v - z|^2 over ball and box by SLSQP, from a start inside. L1 is split into v - x = p - q with p, q >= 0."""
    x, z = (a[0].numpy() for a in some(1, (5,), seed=100 + case))
    eps = budget(ball, 5, 0.2 + 0.08 * case)
    if ball is L1:
        solved = minimize(
            lambda v: float(((x + v[:5] - v[5:] - z) ** 2).sum()),
            np.zeros(10),
            jac=lambda v: np.concatenate([2 * (x + v[:5] - v[5:] - z), -2 * (x + v[:5] - v[5:] - z)]),
            bounds=[(0, 1 - a) for a in x] + [(0, a) for a in x],
            constraints=LinearConstraint(np.ones((1, 10)), -np.inf, eps),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-15},
        )
        wanted = x + solved.x[:5] - solved.x[5:]
    else:
        inside = [{"type": "ineq", "fun": lambda v: eps**2 - ((v - x) ** 2).sum(), "jac": lambda v: -2 * (v - x)}]
        solved = minimize(
            lambda v: float(((v - z) ** 2).sum()),
            x,
            jac=lambda v: 2 * (v - z),
            bounds=[(max(0, a - eps), min(1, a + eps)) for a in x] if ball is Linf else [(0, 1)] * 5,
            constraints=inside if ball is L2 else (),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-15},
        )
        wanted = solved.x
    got = ball(eps).project(torch.from_numpy(z)[None], torch.from_numpy(x)[None])[0].numpy()
    assert np.abs(got - wanted).max() < 2e-6
    assert ((got - z) ** 2).sum() <= ((wanted - z) ** 2).sum() + 1e-7, "scipy found a nearer point"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_l0_projection_equals_the_best_of_all_subsets(count: int) -> None:
    x, z = some(20, (6,), seed=count)
    got = L0(count).project(z, x)
    for i in range(20):
        boxed = z[i].clip(0, 1)
        cost = min(
            float((torch.where(torch.isin(torch.arange(6), torch.tensor(s)), boxed, x[i]) - z[i]).square().sum())
            for s in itertools.combinations(range(6), count)
        )
        assert float((got[i] - z[i]).square().sum()) == pytest.approx(cost, abs=1e-12)
        assert int((got[i] != x[i]).sum()) <= count


def test_a_pixel_of_an_image_is_all_its_channels() -> None:
    x = torch.full((1, 3, 2, 2), 0.5)
    z = x.clone()
    z[0, :, 0, 1] += torch.tensor([0.1, -0.2, 0.3])
    assert L0(1).size(z - x).tolist() == [1.0]
    assert torch.equal(L0(1).project(z, x), z)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projection_is_inside_and_idempotent(ball: type, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, z = (a.to(dtype) for a in some(40, shape, seed=3))
    for u in (0.0, 1e-4, 0.1, 0.5, 1.0):
        threat = ball(budget(ball, x[0].numel(), u))
        once = threat.project(z, x)
        slack = 0 if ball is L0 else 1e-6 if dtype == torch.float32 else 1e-12
        assert float(threat.size(once - x).max()) <= threat.eps * (1 + slack) + slack, f"{threat} left the ball"
        assert float(once.min()) >= 0, f"{threat} left the box"
        assert float(once.max()) <= 1, f"{threat} left the box"
        threat.check(once, x)
        twice = threat.project(once, x)
        assert float((twice - once).abs().max()) <= (3e-7 if dtype == torch.float32 else 1e-12), f"{threat} is not idempotent"


@pytest.mark.parametrize("ball", BALLS)
def test_a_projection_keeps_what_is_already_inside(ball: type) -> None:
    x, z = some(20, (3, 4, 4), seed=4)
    inside = ball(budget(ball, 48, 0.5)).project(z, x)
    wider = ball(budget(ball, 48, 0.6) if ball is not L0 else 20.0)
    assert torch.allclose(wider.project(inside, x), inside, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ball", BALLS)
def test_a_zero_budget_returns_x_bit_for_bit(ball: type) -> None:
    x, z = some(5, (3, 4, 4), seed=5)
    assert torch.equal(ball(0.0).project(z, x), x)
    assert torch.equal(ball(0.0).project(z.float(), x.float()), x.float())
    assert torch.equal(ball(0.0).start(x), x)


@pytest.mark.parametrize("ball", BALLS)
def test_rows_do_not_know_each_other(ball: type) -> None:
    x, z = some(9, (3, 4, 4), seed=6)
    threat = ball(budget(ball, 48, 0.4))
    together = threat.project(z, x)
    alone = torch.cat([threat.project(z[i : i + 1], x[i : i + 1]) for i in range(9)])
    assert torch.equal(together, alone)


@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_convex_projections_bring_points_no_further_apart(seed: int, u: float) -> None:
    x, a = some(1, (3, 3, 3), seed)
    b = a + torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(a.shape))
    for ball in (Linf, L2, L1):
        threat = ball(budget(ball, 27, u))
        moved = (threat.project(a, x) - threat.project(b, x)).norm()
        assert float(moved) <= float((a - b).norm()) + 1e-9, f"{threat} is expansive"


@pytest.mark.parametrize("ball", BALLS)
def test_an_empty_batch_gives_an_empty_result(ball: type) -> None:
    x = torch.zeros(0, 3, 4, 4)
    threat = ball(1.0)
    assert threat.project(x, x).shape == x.shape
    assert threat.start(x).shape == x.shape
    assert threat.size(x).shape == (0,)
    threat.check(x, x)


# ---------------------------------------------------------------- steepest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_the_steepest_direction_reaches_the_dual_norm(ball: type, shape: tuple[int, ...]) -> None:
    g = torch.from_numpy(np.random.default_rng(8).standard_normal((30, *shape)))
    d = ball(1.0).steepest(g)
    flat = g.flatten(1)
    dual = {Linf: flat.abs().sum(1), L2: flat.square().sum(1).sqrt(), L1: flat.abs().amax(1)}[ball]
    assert torch.allclose((d * g).flatten(1).sum(1), dual, rtol=1e-12)
    assert torch.allclose(ball(1.0).size(d), torch.ones(30, dtype=d.dtype), rtol=1e-12)
    others = torch.from_numpy(np.random.default_rng(9).standard_normal((30, 200, *shape)))
    for i in range(30):  # no direction of the same size does better
        unit = others[i] / ball(1.0).size(others[i]).view(-1, *[1] * len(shape))
        assert float((unit * g[i]).flatten(1).sum(1).max()) <= float(dual[i]) + 1e-12


def test_the_steepest_l0_direction_takes_the_places_with_most_gradient() -> None:
    g = torch.from_numpy(np.random.default_rng(10).standard_normal((10, 3, 2, 3)))
    d = L0(2).steepest(g)
    worth = g.abs().sum(1).flatten(1)
    best = torch.tensor([max(float(w[i] + w[j]) for i, j in itertools.combinations(range(6), 2)) for w in worth])
    assert torch.allclose((d * g).flatten(1).sum(1).float(), best)
    assert L0(2).size(d).tolist() == [2.0] * 10


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_gives_a_finite_zero_direction(ball: type, dtype: torch.dtype) -> None:
    assert torch.equal(ball(2.0).steepest(torch.zeros(2, 3, 2, 2, dtype=dtype)), torch.zeros(2, 3, 2, 2, dtype=dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_the_steepest_direction_knows_no_scale(ball: type, scale: float) -> None:
    g = torch.from_numpy(np.random.default_rng(11).standard_normal((4, 3, 4, 4))).float()
    assert torch.allclose(ball(1.0).steepest(g * scale), ball(1.0).steepest(g), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- step


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ball", [Linf, L2])
def test_a_step_goes_along_the_steepest_direction_and_back_into_ball_and_box(ball: type, shape: tuple[int, ...]) -> None:
    x, g = some(20, shape, seed=21)
    threat = ball(budget(ball, x[0].numel(), 0.3))
    at = threat.start(x)
    assert torch.equal(threat.step(at, x, g, 0.2), threat.project(at + 0.2 * threat.steepest(g), x))


@pytest.mark.parametrize("case", range(12))
def test_an_l1_step_within_the_ball_is_the_optimum_of_a_linear_programme(case: int) -> None:
    """max g.(p - q) over p, q >= 0 with sum(p + q) <= step and x_adv + p - q in the box, by scipy."""
    x, g = (a[0].numpy() for a in some(1, (7,), seed=300 + case))
    g[0], length = 0.0, (0.0, 0.1, 0.9, 3.0)[case % 4]
    solved = linprog(
        np.concatenate([-g, g]), np.ones((1, 14)), [length], bounds=[(0, 1 - a) for a in x] + [(0, a) for a in x], method="highs"
    )
    moved = L1(9.0).step(*(torch.from_numpy(a)[None] for a in (x, x, g)), length)[0].numpy()
    assert g @ (moved - x) == pytest.approx(-solved.fun, abs=1e-9)
    assert np.abs(moved - x).sum() <= length + 1e-9
    assert moved[0] == x[0], "no gradient, no move"


def optimum(threat: L1 | L0, x: Tensor, g: Tensor) -> float:
    """The most that g.(z - x) can be for one x (d,) over ball and box, by scipy, or over all sets of pixels."""
    room = torch.where(g > 0, 1 - x, x)
    if isinstance(threat, L0):
        return max(float((g.abs() * room)[list(s)].sum()) for s in itertools.combinations(range(len(x)), int(threat.eps)))
    solved = linprog(-g.abs().numpy(), np.ones((1, len(x))), [threat.eps], bounds=[(0, float(r)) for r in room], method="highs")
    return float(-solved.fun)


@pytest.mark.parametrize("threat", [L1(0.4), L1(1.7), L0(1), L0(4)], ids=str)
@pytest.mark.parametrize("size", [0.3, 1.0, 2.5])
def test_steps_of_any_size_climb_to_the_optimum_of_a_linear_function_from_any_start(threat: L1 | L0, size: float) -> None:
    """Never down on the way, and never out of the ball."""
    x, g = some(15, (8,), seed=31)
    best = torch.tensor([optimum(threat, *pair) for pair in zip(x, g, strict=True)])
    with seed.streams(0, [str(i) for i in range(15)]):
        at = threat.start(x)
    value = (g * (at - x)).sum(1)
    for _ in range(30):
        at = threat.step(at, x, g, size)
        threat.check(at, x)
        now = (g * (at - x)).sum(1)
        assert (now >= value - 1e-9).all(), "a step went down"
        value = now
    assert torch.allclose(value.float(), best.float(), atol=1e-6)


@pytest.mark.parametrize("threat", [L1(1.0), L0(2)], ids=str)
def test_a_step_on_images_moves_whole_pixels_in_l0_and_passes_over_the_edge_of_the_box(threat: L1 | L0) -> None:
    g = torch.full((1, 3, 2, 2), 0.1)
    g[0, :, 0, 0], g[0, :, 1, 1] = 5.0, -1.0
    x = torch.full((1, 3, 2, 2), 0.5)
    x[0, :, 0, 0] = 1.0  # the steepest pixel has no room
    moved = threat.step(x, x, g, threat.eps) - x
    assert (moved[0, :, 0, 0] == 0).all()
    if threat.norm == "L1":
        assert moved[0, :, 1, 1].sum() == -1.0
        assert moved.abs().sum() == 1.0
    else:
        assert (moved[0, :, 1, 1] == -0.5).all()
        assert threat.size(moved).tolist() == [2.0]


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_knows_no_neighbours_and_keeps_its_budget(ball: type, dtype: torch.dtype) -> None:
    x, g = (a.to(dtype) for a in some(9, (3, 4, 4), seed=41))
    for u in (0.0, 0.05, 0.5):
        threat = ball(budget(ball, 48, u))
        at = threat.project(x + 0.3 * g.flip(0), x)
        together = threat.step(at, x, g, threat.eps / 3)
        threat.check(together, x)
        alone = [threat.step(at[i : i + 1], x[i : i + 1], g[i : i + 1], threat.eps / 3) for i in range(9)]
        assert torch.equal(together, torch.cat(alone))
        assert torch.allclose(threat.step(at, x, 0 * g, threat.eps / 3), at, rtol=0, atol=3e-6), "a dead gradient moves nothing"
        assert threat.step(x[:0], x[:0], g[:0], threat.eps / 3).shape == (0, 3, 4, 4)


def test_an_l1_step_may_have_a_size_for_each_example() -> None:
    x, g = some(4, (3, 4, 4), seed=51)
    sizes = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    together = L1(1.0).step(x, x, g, sizes)
    for i in range(4):
        assert torch.equal(together[i : i + 1], L1(1.0).step(x[i : i + 1], x[i : i + 1], g[i : i + 1], float(sizes[i])))


def test_a_sparse_direction_moves_the_steepest_pixels_alike() -> None:
    g = torch.tensor([[0.1, -3.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    d = L1(1.0).sparse(g, torch.tensor([2.0, 3.0]))
    assert d.tolist() == [[0.0, -0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert torch.equal(L1(1.0).sparse(0 * g, torch.tensor([2.0, 3.0])), 0 * g)


def test_what_steps_changed_changed_the_key_of_l1_and_l0_and_of_no_other_norm() -> None:
    assert [getattr(ball, "version", 1) for ball in BALLS] == [1, 1, 2, 2]
    assert to_dict(L1(3.0)) == {"type": "L1", "version": 2, "eps": 3.0, "targeted": False}


# ---------------------------------------------------------------- start


@pytest.mark.parametrize("ball", BALLS)
def test_a_start_is_inside_differs_between_examples_and_follows_its_id(ball: type) -> None:
    x = some(6, (3, 4, 4), seed=12)[0].float()
    threat = ball(budget(ball, 48, 0.3))
    with seed.streams(0, list("abcdef")):
        together = threat.start(x)
    threat.check(together, x)
    assert len({tuple((row - x[i]).flatten().tolist()) for i, row in enumerate(together)}) == 6
    with seed.streams(0, ["c"]):
        assert torch.equal(threat.start(x[2:3]), together[2:3])


# ---------------------------------------------------------------- 8 bits


def all_levels() -> Tensor:
    """Every grey level once, as a batch of one image of 256 pixels."""
    return (torch.arange(256).float() / 255)[None, None, None]


@pytest.mark.parametrize(
    ("eps", "limit"), [(4 / 255, 4), (8 / 255, 8), (16 / 255, 16), (0.03, 7), (0.031, 7), (1 / 255, 1), (0.0, 0), (1.0, 255)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_linf_rounding_never_leaves_its_levels_and_never_truncates(eps: float, limit: int, sign: int) -> None:
    """Every (level, sign) pair: a pixel pushed by exactly eps lands on the wall or `limit` levels away, neither more nor less."""
    x = all_levels()
    threat = Linf(eps)
    moved = threat.to_8bit(threat.project(x + sign * eps, x), x).int() - torch.arange(256)[None, None, None]
    assert int(moved.abs().max()) <= limit
    wanted = (torch.arange(256) + sign * limit).clip(0, 255) - torch.arange(256)
    assert torch.equal(moved[0, 0, 0], wanted.int())


def test_truncation_would_have_left_the_budget() -> None:
    """The trap that `to_8bit` exists for: saving by truncation overshoots on known pairs at 8/255."""
    x, over = all_levels(), 0
    threat = Linf(8 / 255)
    for sign in (-1, 1):
        x_adv = threat.project(x + sign * 8 / 255, x)
        kept = threat.to_8bit(x_adv, x).int()
        assert int((kept - (255 * x).round().int()).abs().max()) == 8
        over += int(((255 * x_adv).int() - (255 * x).round().int()).abs().gt(8).sum())
    assert over > 0


@given(st.integers(0, 2**32), st.floats(0.001, 1))
def test_rounding_never_lengthens_a_change(seed: int, u: float) -> None:
    rng = np.random.default_rng(seed)
    clean = torch.from_numpy(rng.integers(0, 256, (4, 3, 5, 5)))
    x = clean.float() / 255
    z = x + torch.from_numpy(rng.standard_normal(x.shape)).float() * rng.choice([0.003, 0.03, 0.3])
    for ball in BALLS:
        threat = ball(budget(ball, 75, u * u))
        stored = threat.to_8bit(threat.project(z, x), x)
        change = (stored.double() - clean) / 255
        assert stored.dtype == torch.uint8
        assert float(threat.size(change).max()) <= threat.eps * (1 + 1e-9) + 1e-9, f"{threat} grew in 8 bits"
        threat.check(stored.float() / 255, x)


def test_rounding_keeps_a_clean_image() -> None:
    x = all_levels()
    for ball in BALLS:
        assert torch.equal(ball(1.0).to_8bit(x, x).int()[0, 0, 0], torch.arange(256).int())


@pytest.mark.parametrize("ball", BALLS)
def test_an_over_budget_output_is_an_error_and_never_repaired(ball: type) -> None:
    x = torch.full((2, 3, 4, 4), 128 / 255)
    threat = ball({Linf: 8 / 255, L2: 0.5, L1: 2.0, L0: 3.0}[ball])
    x_adv = x.clone()
    x_adv[1, :, :2] += 0.3
    for judge in (threat.check, threat.to_8bit):
        with pytest.raises(BudgetError, match="over the budget"):
            judge(x_adv, x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_is_an_error(bad: float) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = bad
    with pytest.raises(BudgetError, match="NaN or infinite"):
        Linf(1.0).check(x_adv, x)


def test_the_box_is_exact() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(BudgetError, match=r"\[0,1\]"):
        Linf(0.1).check(x - 1e-8, x)
    with pytest.raises(BudgetError, match=r"\[0,1\]"):
        Linf(0.1).check(x + 1 + 1e-7, x + 1)


def test_another_shape_is_an_error() -> None:
    with pytest.raises(BudgetError, match="shape"):
        Linf(0.1).check(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4))


def test_only_8_bit_images_have_levels() -> None:
    assert levels(all_levels()).flatten().tolist() == list(range(256))
    for ball in BALLS:
        with pytest.raises(DataError, match="8-bit"):
            ball(1.0).to_8bit(all_levels() * 0.999, all_levels() * 0.999)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, -math.inf, True, "8/255", None])
def test_a_bad_budget_is_refused(ball: type, eps: object) -> None:
    with pytest.raises(SpecError, match="eps must be"):
        ball(eps)
