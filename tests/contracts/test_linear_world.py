"""The closed forms that clauses 15, 18 and 23 rest on, each against a second derivation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from firedoor import losses, seed
from firedoor.contracts import victims
from firedoor.contracts.entries import subject
from firedoor.contracts.linear_world import DISTANCE, VECTOR, LinearWorld
from firedoor.threat import L0, L1, L2, Linf

NORMS = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
EXACT, OTHER = subject("attacks", "FGSM"), subject("attacks", "BSR")


def slope(world: LinearWorld) -> Tensor:
    """(n, d): the gradient of the loss of margin, from the network."""
    leaf = world.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(losses.margin(world.network(leaf), world.y).sum(), leaf)
    return g.flatten(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [victims.SHAPE, VECTOR], ids=["images", "vectors"])
@pytest.mark.parametrize("s", [EXACT, OTHER], ids=["exact", "other"])
def test_every_margin_is_that_of_the_distance_and_the_distance_is_where_the_boundary_is(
    s: object, shape: tuple[int, ...], norm: str
) -> None:
    world = LinearWorld(s, norm, shape)
    with torch.no_grad():
        margins = -losses.margin(world.network(world.x), world.y)
    assert torch.allclose(margins, torch.full_like(margins, world.margin), atol=1e-9)
    short = world.distance - 1 if norm == "L0" else 0.999 * world.distance
    assert (world.most(world.distance) >= world.margin * (1 - 1e-9)).all()
    assert (world.most(short) < world.margin).all()
    if norm == "Linf":
        assert torch.allclose(world.distance, torch.full_like(world.distance, DISTANCE), atol=1e-9)
    assert world.beyond(1.5) >= 1.5 * float(world.distance.max())
    assert world.below(0.5) <= max(0.5 * float(world.distance.min()), 1)


@pytest.mark.parametrize("eps", [0.5, 2.0, 9.0])
def test_the_most_in_l1_is_that_of_a_linear_programme(eps: float) -> None:
    world = LinearWorld(EXACT, "L1", VECTOR)
    for x, g, most in zip(world.x, slope(world), world.most(eps), strict=True):
        room = torch.where(g > 0, 1 - x, x).numpy()
        solved = linprog(-g.abs().numpy(), np.ones((1, len(g))), [eps], bounds=[(0, r) for r in room], method="highs")
        assert float(most) == pytest.approx(-solved.fun, rel=1e-9)


def test_the_most_in_l0_is_that_of_all_sets_of_pixels() -> None:
    world = LinearWorld(EXACT, "L0")
    g, x = slope(world).view(-1, 2, 64), world.x.view(-1, 2, 64)
    place = (g.abs() * torch.where(g > 0, 1 - x, x)).sum(1)
    for count in (1, 2):
        best = torch.stack([place[:, list(s)].sum(1) for s in itertools.combinations(range(64), count)]).amax(0)
        assert torch.allclose(world.most(count), best)


@pytest.mark.parametrize("eps", [0.3, 1.2])
def test_the_most_in_l2_is_what_a_solver_finds_and_no_step_exceeds_it(eps: float) -> None:
    world = LinearWorld(EXACT, "L2", VECTOR)
    g, x, most = slope(world)[0], world.x[0].numpy(), float(world.most(eps)[0])
    solved = minimize(
        lambda d: -float(g.numpy() @ d),
        np.zeros(len(x)),
        jac=lambda d: -g.numpy(),
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints=[{"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d}],
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    assert most == pytest.approx(-solved.fun, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_no_point_of_the_ball_falls_by_more_and_one_share_is_the_whole(norm: str) -> None:
    world = LinearWorld(OTHER, norm)
    eps = world.below(0.5)
    threat = NORMS[norm](eps)
    best = world.x
    for _ in range(60):
        best = threat.step(best, world.x, slope(world).view_as(world.x), max(eps / 5, 1.0 if norm == "L0" else 0))
    with seed.streams(0, [str(i) for i in range(len(world.x))]):
        noise = threat.start(world.x)
    assert torch.allclose(world.fall(best, eps), torch.ones(len(world.x), dtype=torch.float64), atol=1e-6)
    assert float(world.fall(noise, eps).max()) < 1
    assert float(world.fall(noise, eps).mean().abs()) < 3 * world.noise(eps)
    assert not math.isnan(world.noise(eps))
