"""The steps that the losses share: what they were in Linf and L2, and that they see the box in L1 and L0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import a_batch, numbers
from defence_fakes import Toy, net
from torch import Tensor

from firedoor import seed
from firedoor.defences.losses.ascent import ascend, check_ascent, nearby
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.trades import TRADES
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy, kl
from firedoor.threat import L0, L1, L2, Linf, Threat

DATA = Toy()
SPLIT = DATA.split("target")[:12]
BATCH = a_batch(SPLIT.x, SPLIT.y)


def stepped(objective: Any, x_adv: Tensor, threat: Threat, steps: int, step_size: float) -> Tensor:
    """Steps along `steepest`, then a projection: all there is to a step in Linf and L2."""
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        x_adv = threat.project(x_adv.detach() + step_size * threat.steepest(g), SPLIT.x)
    return x_adv


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5)], ids=["Linf", "L2"])
def test_trades_and_fast_step_as_by_hand_bit_for_bit(threat: Threat) -> None:
    module = net(DATA).eval()
    clean = module(SPLIT.x).detach()
    with seed.streams(0, BATCH.ids):
        x_adv = TRADES(threat, steps=4).craft(module, BATCH)
    with seed.streams(0, BATCH.ids):
        start = threat.project(SPLIT.x + seed.normal(SPLIT.x, 0.001), SPLIT.x)
    assert torch.equal(x_adv, stepped(lambda x: kl(module(x), clean), start, threat, 4, threat.eps / 4))
    shown: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    with seed.streams(0, BATCH.ids):
        Fast(threat, guard=False).start(None, SPLIT)(module, BATCH)  # type: ignore[arg-type]
    hook.remove()
    with seed.streams(0, BATCH.ids):
        start = threat.start(SPLIT.x)
    by_hand = stepped(lambda x: cross_entropy(module(x), SPLIT.y), start, threat, 1, 1.25 * threat.eps)
    assert torch.equal(shown[-1], by_hand)


@pytest.mark.parametrize("threat", [L1(1.0), L0(2)], ids=["L1", "L0"])
def test_a_step_passes_over_pixels_that_are_at_the_edge(threat: Threat) -> None:
    """The steepest pixel is at 1 already. All that can be gained is on the next ones: 1 in L1; 0.9 and 0.6 in L0."""
    slope, x = torch.tensor([[5.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.1, 0.4, 0.5]])
    x_adv = ascend(lambda z: (z * slope).sum(1), x, x, threat, 4, None)
    threat.check(x_adv, x)
    best = 0.9 * 3 + (0.1 if isinstance(threat, L1) else 0.6) * 2
    assert float(((x_adv - x) * slope).sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(3.0), L0(5)], ids=["Linf", "L2", "L1", "L0"])
def test_steps_stay_inside_and_climb(threat: Threat) -> None:
    module = net(DATA).eval()
    with seed.streams(0, BATCH.ids):
        start = nearby(threat, SPLIT.x)
    threat.check(start, SPLIT.x)
    assert not torch.equal(start, SPLIT.x)
    size = 1.0 if isinstance(threat, L0) else None
    x_adv = ascend(lambda x: cross_entropy(module(x), SPLIT.y), start, SPLIT.x, threat, 5, size)
    threat.check(x_adv, SPLIT.x)
    assert not x_adv.requires_grad
    assert bool((cross_entropy(module(x_adv), SPLIT.y) > cross_entropy(module(start), SPLIT.y) + 1e-4).all())


def test_a_step_size_that_is_left_out_is_a_quarter_of_eps() -> None:
    x = 0.4 + numbers(3, 5) / 5
    moved = ascend(lambda z: z.sum(1), x, x, Linf(0.1), 2, None)
    torch.testing.assert_close(moved, x + 0.05)


@pytest.mark.parametrize(
    ("wrong", "word"), [((0, None, "eval"), "steps"), ((1, 0.0, "eval"), "step_size"), ((1, None, "test"), "inner_mode")]
)
def test_fields_that_make_no_sense_are_refused(wrong: Any, word: str) -> None:
    with pytest.raises(SpecError, match=rf"MART: {word} must be .*, got .*\. \w+"):
        check_ascent("MART", Linf(0.1), *wrong)
    with pytest.raises(SpecError, match="untargeted, got targeted=True"):
        check_ascent("MART", Linf(0.1, targeted=True), 1, None, "eval")
