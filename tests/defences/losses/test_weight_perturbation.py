"""AWP: at which weights the loss is taken, that the network keeps its own, and what it is worth on digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import DIGITS, a_batch, numbers, value_of
from defence_fakes import Ascent, Fixed, Net, Toy, net, same, weights
from digit_fakes import EPS, ON_CNN, accuracy, fitted, linear, passes, plain, robust_accuracy, trained_alike
from torch import Tensor, nn

from firedoor.defences.losses.ard import ARD
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.mart import MART
from firedoor.defences.losses.trades import TRADES
from firedoor.defences.losses.weight_perturbation import AWP
from firedoor.errors import SpecError
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")[:12]
BATCH = a_batch(SPLIT.x, SPLIT.y)
PGD = Ascent(Linf(EPS), steps=3, start=True, share=0.5)
BASES: dict[str, Any] = {
    "Madry": Madry(PGD),
    "TRADES": TRADES(Linf(EPS), steps=2),
    "TRADES(beta=0)": TRADES(Linf(EPS), beta=0.0),
    "MART": MART(Linf(EPS), steps=2),
}
FORWARDS = {"Madry": 1, "TRADES": 2, "TRADES(beta=0)": 1, "MART": 2}


def test_value_and_gradient_are_those_at_the_worst_weights_nearby() -> None:
    """By hand on a linear model: the weight moves by gamma |W| along its gradient, the bias not at all."""
    x, y, w, b = numbers(6, 4), torch.arange(6) % 2, 3 * numbers(2, 4, key="w"), torch.tensor([0.3, -0.2])
    module, twin = linear(w, b), linear(w, b)
    value = value_of(AWP(Madry(Ascent(Linf(0.0))), gamma=0.5), module, a_batch(x, y))
    value.backward()  # type: ignore[no-untyped-call]
    p = (x @ w.T + b).softmax(1)
    g = (p - nn.functional.one_hot(y, 2)).T @ x / 6
    with torch.no_grad():
        twin.weight += 0.5 * w.square().sum().sqrt() * g / g.square().sum().sqrt()
    wanted = nn.functional.cross_entropy(twin(x), y)
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(module.weight.grad, twin.weight.grad)
    assert module.bias.grad is not None
    torch.testing.assert_close(module.bias.grad, twin.bias.grad)
    assert float(value.detach()) > float(nn.functional.cross_entropy(x @ w.T + b, y)) + 0.05
    assert torch.equal(module.weight, w)


@pytest.mark.parametrize("name", BASES)
def test_each_layer_moves_by_its_share_and_the_examples_are_crafted_once_at_the_weights(name: str) -> None:
    module = net(DATA).train()
    assert isinstance(module, Net)
    layers = [m for m in module.body if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    own, seen, shown = [m.weight for m in layers], [], []
    hooks = [m.register_forward_pre_hook(lambda m, _: seen.append((m, m.weight.detach().clone()))) for m in layers]
    hooks.append(module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0])))
    value_of(AWP(BASES[name], gamma=0.1), module, BATCH)
    for h in hooks:
        h.remove()
    forwards = FORWARDS[name]
    at_end = seen[-forwards * len(layers) :]
    for m, w in at_end:
        if m.weight.dim() == 1:
            assert torch.equal(w, m.weight)
        else:
            at_rest = m.weight.detach()
            moved = float((w - at_rest).square().sum().sqrt() / at_rest.square().sum().sqrt())
            assert moved == pytest.approx(0.1, rel=1e-3)
    for m, w in seen[: -forwards * len(layers)]:
        assert torch.equal(w, m.weight), "x' and the direction are found at the weights themselves"
    assert all(m.weight is w for m, w in zip(layers, own, strict=True))
    for again, first in zip(shown[-forwards:], shown[-2 * forwards : -forwards], strict=True):
        assert torch.equal(again, first), "the same x' at both weights"


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("fails", [False, True], ids=["runs", "fails"])
def test_the_network_keeps_its_weights_and_the_statistics_of_the_base(name: str, fails: bool) -> None:
    module, twin = net(DATA).train(), net(DATA).train()
    module.register_buffer("unsaved", torch.zeros(2), persistent=False)
    before, parameters = weights(module), dict(module.named_parameters())
    buffers = {k: id(b) for k, b in module.named_buffers()}
    value_of(BASES[name], twin, BATCH)
    calls: list[int] = []
    counter = module.register_forward_hook(lambda *_: calls.append(0))
    value_of(AWP(BASES[name], gamma=0.1), module, BATCH)
    total = len(calls)
    module.load_state_dict(before)

    def fail(m: nn.Module, *_: Any) -> None:
        m.get_buffer("unsaved").add_(1)
        if fails and len(calls) == 2 * total - 1:
            raise RuntimeError("the network broke")

    counter.remove()
    counter = module.register_forward_hook(lambda *_: calls.append(0))
    module.get_submodule("body.7").register_forward_hook(lambda *_: fail(module))
    if fails:
        with pytest.raises(RuntimeError, match="the network broke"):
            value_of(AWP(BASES[name], gamma=0.1), module, BATCH)
    else:
        value_of(AWP(BASES[name], gamma=0.1), module, BATCH).backward()  # type: ignore[no-untyped-call]
    counter.remove()
    assert all(p is parameters[k] for k, p in module.named_parameters())
    assert {k: id(b) for k, b in module.named_buffers()} == buffers
    after = weights(module)
    assert same({k: before[k] for k in parameters}, {k: after[k] for k in parameters}), "weights changed"
    statistics = {k: v for k, v in weights(twin).items() if k not in parameters}
    assert statistics
    assert same(statistics, {k: after[k] for k in statistics}), "statistics are not those of one run of the base"
    assert module.get_buffer("unsaved").tolist() == [FORWARDS[name]] * 2
    assert module.training
    assert all(p.requires_grad and (fails or p.grad is not None) for p in module.parameters())


@pytest.mark.parametrize("name", BASES)
def test_without_gamma_it_is_its_base(name: str) -> None:
    assert trained_alike(AWP(BASES[name], gamma=0.0), BASES[name])
    assert not trained_alike(AWP(BASES[name], gamma=0.05), BASES[name])


def test_a_layer_without_a_gradient_stays() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = linear(numbers(2, 4)), linear(numbers(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x) + 0 * self.idle(x)
            return out

    value = value_of(AWP(Madry(Ascent(Linf(0.0)))), Idle(), a_batch(numbers(4, 4), torch.arange(4) % 2))
    assert bool(torch.isfinite(value))


def test_it_costs_one_more_pass_per_forward_of_the_base() -> None:
    for base, cost in ((BASES["Madry"], 3 + 1), (BASES["TRADES"], 2 + 2), (BASES["MART"], 2 + 2)):
        assert passes(base) == cost
        assert passes(AWP(base)) == cost + (1 if base is BASES["Madry"] else 2)


def test_bases_that_do_not_craft_apart_are_refused() -> None:
    for base in (CrossEntropy(), ARD(Fixed(DATA), Linf(0.1))):
        with pytest.raises(SpecError, match=rf"AWP: base must craft .*, got {type(base).__name__}\. Use Madry, TRADES or MART"):
            AWP(base)
    with pytest.raises(SpecError, match=r"AWP: gamma must be 0 or more and finite, got -0\.1\. Try 0\.01"):
        AWP(BASES["Madry"], gamma=-0.1)


@pytest.mark.parametrize("on_cnn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_it_makes_digits_robust(on_cnn: bool) -> None:
    module, _ = fitted(AWP(BASES["Madry"], gamma=0.005), **(ON_CNN if on_cnn else {}))
    before, after = robust_accuracy(plain(on_cnn)), robust_accuracy(module)
    assert after > before + 0.25, (before, after)
    assert accuracy(module) > 0.85


def test_it_finds_weights_whose_neighbours_are_as_good() -> None:
    """The robust loss on training digits at w + v, v the worst of the layer's relative size, over that at w."""
    split = DIGITS.split("target")[:300]
    batch, base, rises = a_batch(split.x, split.y), Madry(Ascent(Linf(EPS), steps=3, share=0.5)), []
    for loss in (base, AWP(base, gamma=0.02)):
        module, _ = fitted(loss)
        module.requires_grad_(True)
        here = float(value_of(base, module, batch).detach())
        rises.append(float(value_of(AWP(base, gamma=0.02), module, batch).detach()) - here)
    assert rises[1] < 0.8 * rises[0], rises
