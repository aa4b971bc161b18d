"""Free: whose gradient moves delta, where delta goes next, and what it is worth on digits."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import a_batch, numbers
from defence_fakes import DictStore
from digit_fakes import CNN, EPS, ON_CNN, accuracy, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import Tensor, nn

from firedoor.defences.fit import Remembering
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.free import Free
from firedoor.errors import SpecError
from firedoor.protocols import Batch, LossFn, Split
from firedoor.threat import L0, L1, L2, Linf, Threat

X, Y = 0.3 + 0.4 * numbers(6, 4), torch.arange(6) % 2
W = 3 * numbers(2, 4, key="w") - 1.5


def started(loss: Free) -> LossFn:
    return loss.start(DictStore(), Split(X, Y, tuple("abcdef")))


def seen(live: LossFn, module: nn.Module, batch: Batch, scale: float = 1.0) -> Tensor:
    """What one step of training shows the network, which then goes back through it."""
    shown: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
    (scale * live(module, batch)).backward()  # type: ignore[no-untyped-call]
    hook.remove()
    (x,) = shown
    return x


def test_each_replay_is_one_step_further_and_never_leaves_the_ball() -> None:
    """A linear model of two classes: the sign of the gradient is the same everywhere."""
    live, module, w = started(Free(Linf(0.1), step_size=0.06)), linear(W), W[1] - W[0]
    down = -(2 * Y - 1)[:, None] * w.sign()
    for size in (0.0, 0.06, 0.1, 0.1):
        torch.testing.assert_close(seen(live, module, a_batch(X, Y)), X + size * down)


def test_value_and_gradient_are_those_of_cross_entropy_at_the_moved_point() -> None:
    live, module, twin = started(Free(Linf(0.1))), linear(W), linear(W)
    x = X
    for step in range(3):
        module.zero_grad()
        twin.zero_grad()
        moving = x.clone().requires_grad_()
        wanted = nn.functional.cross_entropy(twin(moving), Y)
        wanted.backward()  # type: ignore[no-untyped-call]
        value = live(module, a_batch(X, Y))
        value.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(module.weight.grad, twin.weight.grad)
        assert moving.grad is not None
        x = X + 0.1 * moving.grad.sign()
        assert step or not torch.equal(x, X)


def test_delta_goes_on_to_the_next_batch_by_position_and_over_a_shorter_one() -> None:
    live, module = started(Free(Linf(0.1))), linear(W)
    seen(live, module, a_batch(X, Y))
    first = seen(live, module, a_batch(X, Y)) - X
    other = X.flip(0)
    torch.testing.assert_close(seen(live, module, a_batch(other[:2], Y[:2])) - other[:2], first[:2])
    last = seen(live, module, a_batch(X, Y)) - X
    torch.testing.assert_close(last[2:], first[2:])
    down = -(2 * Y - 1)[:, None] * (W[1] - W[0]).sign()
    torch.testing.assert_close(last[:2], 0.1 * down[:2])
    longer, labels = torch.cat([X, X[:2]]), torch.cat([Y, Y[:2]])
    assert torch.equal(seen(live, module, a_batch(longer, labels))[6:], X[:2]), "rows that no batch had before begin at 0"


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.4), L1(1.0), L0(2)], ids=["Linf", "L2", "L1", "L0"])
def test_points_keep_to_the_threat_where_the_box_is_near(threat: Threat) -> None:
    live, module, values = started(Free(threat)), linear(W), []
    edges = (3 * numbers(6, 4) - 1).minimum(torch.ones(())).maximum(torch.zeros(()))
    for x in (edges, edges, edges.flip(0), edges.flip(0)):
        x_adv = seen(live, module, a_batch(x, Y))
        threat.check(x_adv, x)
        values.append(float(nn.functional.cross_entropy(module(x_adv), Y).detach()))
    assert values[1] > values[0] + 0.01


def test_the_size_of_the_loss_does_not_matter() -> None:
    """Loss scaling and gradient accumulation multiply it."""
    for threat in (Linf(0.1), L2(0.2)):
        one, other, module = started(Free(threat)), started(Free(threat)), linear(W)
        for _ in range(3):
            torch.testing.assert_close(seen(one, module, a_batch(X, Y)), seen(other, module, a_batch(X, Y), 1024.0))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.2)], ids=["Linf", "L2"])
def test_an_overflow_does_not_stay(threat: Threat) -> None:
    live, module = started(Free(threat)), linear(W)
    live(module, a_batch(X, Y)).mul(math.nan).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(seen(live, module, a_batch(X, Y)), X)


def test_a_checkpoint_holds_delta() -> None:
    live, module = started(Free(Linf(0.1))), linear(W)
    assert isinstance(live, Remembering)
    assert live.state() == {}
    seen(live, module, a_batch(X, Y))
    again = started(Free(Linf(0.1)))
    assert isinstance(again, Remembering)
    again.restore(live.state())
    assert torch.equal(seen(again, module, a_batch(X, Y)), seen(live, module, a_batch(X, Y)))


def test_without_a_budget_or_a_step_it_is_plain_training() -> None:
    assert trained_alike(Free(Linf(0.0)), CrossEntropy())
    assert trained_alike(Free(Linf(EPS), step_size=0.0), CrossEntropy(), replays=2)
    assert not trained_alike(Free(Linf(EPS)), CrossEntropy())


def test_it_costs_one_pass_per_replay() -> None:
    assert passes(Free(Linf(EPS))) == 1
    assert passes(Free(Linf(EPS)), architecture=CNN, replays=4) == passes(CrossEntropy(), replays=4) == 4


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(SpecError, match=r"Free: step_size must be 0 or more and finite, got -1\.0\. Leave it out"):
        Free(Linf(0.1), step_size=-1.0)
    with pytest.raises(SpecError, match="Free: the threat must be untargeted, got targeted=True"):
        Free(Linf(0.1, targeted=True))


@pytest.mark.parametrize("on_cnn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_it_makes_digits_robust_for_the_price_of_plain_training(on_cnn: bool) -> None:
    settings = {**(ON_CNN if on_cnn else {}), "replays": 4, "epochs": 4}
    (module, training), (control, _) = fitted(Free(Linf(EPS)), **settings), fitted(CrossEntropy(), **settings)
    assert training.passes == 4
    for other in (control, plain(on_cnn)):
        assert robust_accuracy(module) > robust_accuracy(other) + 0.2, (robust_accuracy(other), robust_accuracy(module))
    assert accuracy(module) > 0.85
