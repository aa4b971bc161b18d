"""Preflight: each planted fault fires its own sign, honest models pass them all, and every model is left as it was."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.variable import Variable

from firedoor import catalogue, seed, spec
from firedoor.architectures.mlp import MLP
from firedoor.architectures.small_cnn import SmallCNN
from firedoor.data.digits import Digits
from firedoor.defences.wrappers.noise import Noise
from firedoor.diagnostics.abstains import Abstains
from firedoor.diagnostics.batch_invariance import BatchInvariance
from firedoor.diagnostics.class_count import ClassCount
from firedoor.diagnostics.eval_mode import EvalMode
from firedoor.diagnostics.gradient_present import GradientPresent
from firedoor.diagnostics.gradient_right import GradientRight
from firedoor.diagnostics.input_contract import InputContract
from firedoor.diagnostics.optimisation_in_forward import OptimisationInForward
from firedoor.diagnostics.probabilities import Probabilities
from firedoor.diagnostics.quantised_input import QuantisedInput
from firedoor.diagnostics.randomised import Randomised
from firedoor.errors import SpecError
from firedoor.protocols import Classifier, Diagnostic, Split, Symptom

DIGITS = Digits()
TRAIN, TEST = DIGITS.split("target"), DIGITS.split("evaluation")[slice(0, 80)]
FEW = TEST[slice(0, 40)]


def battery(classes: int = 10, declared: bool = False) -> dict[str, Any]:
    return {
        "A1": EvalMode(),
        "A2": Randomised(declared),
        "A3": BatchInvariance(),
        "A4": Probabilities(),
        "A5": OptimisationInForward(),
        "A6": ClassCount(),
        "A7": GradientPresent(),
        "A8": GradientRight(),
        "A9": QuantisedInput(),
        "A10": InputContract(),
        "A11": Abstains(classes),
    }


# ---------------------------------------------------------------- models


class Around(nn.Module):
    """A function around a network, in eval mode."""

    def __init__(self, inner: nn.Module, f: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.f = inner, f
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.inner, x)


class DeadHalf(nn.Module):
    """Half of the pixels go in behind a ReLU that never opens."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        out: Tensor = self.last(torch.cat([flat[:, :48], F.relu(flat[:, 48:] - 2)], 1))
        return out


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def trained(
    build: Callable[[], nn.Module],
    steps: int = 30,
    y: Tensor = TRAIN.y,
    seen: Callable[[Tensor], Tensor] = lambda x: x,
    lr: float = 0.02,
) -> nn.Module:
    with seed.forked(0, "weights"):
        module = build().train()
        optimiser = torch.optim.Adam(module.parameters(), lr)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(module(seen(TRAIN.x[:500])), y[:500]).backward()
            optimiser.step()
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def linear_net() -> nn.Module:
    return trained(linear)


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    return trained(lambda: MLP(width=32, dropout=0.2).build(DIGITS.shape, 10))


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    return trained(lambda: SmallCNN(width=6, hidden=24).build(DIGITS.shape, 10))


@pytest.fixture(scope="module")
def batch_norm() -> nn.Module:
    return trained(with_batch_norm)


@pytest.fixture(autouse=True)
def _nets_as_they_were(mlp: nn.Module, batch_norm: nn.Module) -> Iterator[None]:
    """Tests put shared nets in training mode; and nothing may be left in torch."""
    engine, dual = Variable._execution_engine, torch.autograd.forward_ad.make_dual
    yield
    assert Variable._execution_engine is engine, "torch's engine was not put back"
    assert torch.autograd.forward_ad.make_dual is dual, "forward mode was not put back"
    for net in (mlp, batch_norm):
        net.eval()


class Scaled(torch.autograd.Function):
    """The identity, with a gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.factor * g, None


class Reversed(torch.autograd.Function):
    """The identity, with the gradient of another pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g.flip(-1, -2)


def noisy(net: nn.Module, sigma: float) -> nn.Module:
    """Noise from torch's own generator, which no stream keys."""
    return Around(net, lambda inner, x: inner(x + sigma * torch.randn_like(x)))


def purified(net: nn.Module) -> nn.Module:
    """Three steps of SGD on the input, towards a confident answer, before each answer."""

    def forward(inner: nn.Module, x: Tensor) -> Tensor:
        z = x.detach()
        for _ in range(3):
            with torch.enable_grad():
                z.requires_grad_(True)
                sharp = inner(z).log_softmax(1).amax(1).sum()
                (g,) = torch.autograd.grad(sharp, z)
            z = (z + 0.01 * g.sign()).detach()
        out: Tensor = inner(z)
        return out

    return Around(net, forward)


def detector(net: nn.Module) -> nn.Module:
    """An eleventh logit that wins where no other is large."""
    return Around(net, lambda inner, x: F.pad(inner(x), (0, 1), value=2.0))


def counted(symptom: Symptom) -> None:
    """What every symptom must hold to."""
    assert symptom.status in ("pass", "suspect", "fail", "not_run"), symptom
    assert symptom.text, symptom
    assert "nan" not in symptom.text.lower().split(), symptom
    if symptom.low is not None and symptom.high is not None and symptom.value is not None:
        assert symptom.low <= symptom.value <= symptom.high, symptom


# ---------------------------------------------------------------- honest


def check_honest(model: Classifier, tests: dict[str, Any], split: Split = TEST) -> None:
    for key, test in tests.items():
        symptom = test(model, split)
        counted(symptom)
        assert symptom.id == key
        assert symptom.status == "pass", f"a false alarm on an honest model: {symptom}"
        assert symptom.n > 0, symptom
        assert not symptom.examples, symptom


def test_honest_linear(linear_net: nn.Module) -> None:
    check_honest(linear_net, battery())


def test_honest_mlp(mlp: nn.Module) -> None:
    check_honest(mlp, battery())


def test_honest_cnn(cnn: nn.Module) -> None:
    check_honest(cnn, battery())


def test_honest_batch_norm_and_max_pool(batch_norm: nn.Module) -> None:
    """The background of the digits is flat, so many max pools tie: a kink that no step cures."""
    check_honest(batch_norm, battery())


def test_honest_two_classes() -> None:
    odd = Split(TEST.x, TEST.y % 2, TEST.ids)
    net = trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)), y=TRAIN.y % 2)
    check_honest(net, battery(classes=2), odd)
    assert ClassCount()(net, odd).text == "2 classes: no DLR loss, no targeted DLR loss"


def test_honest_log_softmax_is_noted(mlp: nn.Module) -> None:
    net = Around(mlp, lambda inner, x: inner(x).log_softmax(1))
    check_honest(net, battery())
    assert "log p given" in Probabilities()(net, TEST).text
    assert "log p" not in Probabilities()(mlp, TEST).text


def test_honest_confident(mlp: nn.Module) -> None:
    net = Around(mlp, lambda inner, x: 3 * inner(x))
    logits = net(TEST.x).sort(1).values
    assert float((logits[:, -1] - logits[:, -2]).median()) > 15, "not a confident net"
    check_honest(net, battery())


def test_honest_dead_inputs() -> None:
    net = trained(DeadHalf)
    x = TEST.x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(net(x).sum(), x)
    assert bool((g.flatten(1)[:, 48:] == 0).all()), "no input is dead"
    check_honest(net, battery())


def test_honest_declared_noise(mlp: nn.Module) -> None:
    tests = battery(declared=True)
    symptom = tests.pop("A2")(Noise(0.1).wrap(mlp), TEST)
    assert symptom.status == "pass"
    assert "averaged over draws" in symptom.text
    assert symptom.value > 1e-2
    check_honest(Noise(0.1).wrap(mlp), tests)


def test_honest_function_in_float32(mlp: nn.Module) -> None:
    """No module, so nothing to copy to float64, and no modes to see."""
    tests = battery()
    assert tests.pop("A1")(lambda x: mlp(x), TEST).status == "not_run"
    check_honest(lambda x: mlp(x), tests)
    assert "float32" in GradientRight()(lambda x: mlp(x), TEST).text


# ---------------------------------------------------------------- planted


def test_planted_scaled_logits_fire_a7(mlp: nn.Module) -> None:
    symptom = GradientPresent()(Around(mlp, lambda inner, x: 1e4 * inner(x)), TEST)
    assert symptom.status == "suspect"
    assert symptom.value is not None
    assert symptom.value > 0.5


def test_planted_zero_backward_fires_a7_and_a8(mlp: nn.Module) -> None:
    for cut in (lambda inner, x: inner(Scaled.apply(x, 0.0)), lambda inner, x: inner(x.detach())):
        assert GradientPresent()(Around(mlp, cut), TEST).status == "fail"
        assert GradientRight()(Around(mlp, cut), TEST).status == "fail"


def test_planted_wrong_backward_fires_a8_alone(mlp: nn.Module) -> None:
    wrong = Around(mlp, lambda inner, x: inner(Reversed.apply(x)))
    symptom = GradientRight()(wrong, TEST)
    assert (symptom.status, symptom.effect, symptom.n) == ("fail", "mask", 64)
    assert symptom.value == 1
    assert "float64" in symptom.text
    assert set(symptom.examples) <= set(TEST.ids)
    assert symptom.examples
    assert GradientPresent()(wrong, TEST).status == "pass", "A7 cannot see it, which is why A8 is there"
    assert GradientRight()(lambda x: wrong(x), TEST).status == "fail", "in float32"


def test_planted_rounding_fires_a9(mlp: nn.Module) -> None:
    for levels in (1, 3, 15, 31, 63, 255):
        net = Around(mlp, lambda inner, x, top=levels: inner((x * top).round() / top))
        symptom = QuantisedInput()(net, TEST)
        assert symptom.status == "fail", f"{levels + 1} levels go unseen: {symptom}"
        assert symptom.examples
    fine = Around(mlp, lambda inner, x: inner((x * 2**14).round() / 2**14))
    assert QuantisedInput()(fine, TEST).status == "pass", "stairs far below the noise are no stairs"


def test_a9_sees_stairs_off_the_grid_of_levels(linear_net: nn.Module) -> None:
    """Images of all grey levels: noise of 0.4 levels crosses some stair of 31, and a tenth of it crosses none."""
    with seed.streams(0, TEST.ids):
        split = Split((255 * seed.uniform(TEST.x, 0, 1)).round() / 255, TEST.y, TEST.ids)
    rounded = Around(linear_net, lambda inner, x: inner((x * 31).round() / 31))
    assert QuantisedInput()(rounded, split).status == "fail"
    assert QuantisedInput()(linear_net, split).status == "pass"


def test_planted_dropout_left_on_fires_a1(mlp: nn.Module) -> None:
    for module in mlp.modules():
        module.training = isinstance(module, nn.Dropout)
    left_on = [m.training for m in mlp.modules()]
    symptom = EvalMode()(mlp, TEST)
    assert (symptom.status, symptom.effect) == ("fail", "void")
    assert symptom.value == sum(left_on) == 2
    assert symptom.n == len(left_on)
    assert [m.training for m in mlp.modules()] == left_on, "the modes are the caller's"


def test_planted_self_training_fires_a1(mlp: nn.Module) -> None:
    def forward(inner: nn.Module, x: Tensor) -> Tensor:
        inner.train()
        out: Tensor = inner(x)
        return out

    net = Around(mlp, forward)
    symptom = EvalMode()(net, TEST)
    assert symptom.status == "fail"
    assert "0 of" in symptom.text
    assert not any(m.training for m in net.modules()), "the modes are the caller's"


def test_planted_noise_fires_a2(mlp: nn.Module) -> None:
    state = torch.random.get_rng_state()
    symptom = Randomised(declared=False)(noisy(mlp, 0.1), TEST)
    assert (symptom.status, symptom.effect) == ("fail", "cap")
    assert symptom.examples
    assert symptom == Randomised(declared=False)(noisy(mlp, 0.1), TEST), "a test must say the same twice"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Randomised(declared=False)(noisy(mlp, 1e-7), TEST).status == "pass", "below the threshold"
    assert Randomised(declared=True)(noisy(mlp, 0.1), TEST).status == "pass"
    assert Randomised(declared=False)(Noise(0.1).wrap(mlp), TEST).status == "fail", "keyed noise is noise"


def test_declared_but_never_random_is_suspect(mlp: nn.Module) -> None:
    symptom = Randomised(declared=True)(mlp, TEST)
    assert symptom.status == "suspect"
    assert "declared stochastic, but" in symptom.text
    mlp.train()  # dropout that the guard switches off, as it does in every measurement
    assert Randomised(declared=True)(mlp, TEST).status == "suspect"


def test_a2_sees_an_answer_that_is_sometimes_nan(mlp: nn.Module) -> None:
    turns = itertools.count()
    net = Around(mlp, lambda inner, x: inner(x) * (torch.nan if next(turns) % 5 == 3 else 1.0))
    symptom = Randomised(declared=False)(net, FEW)
    assert (symptom.status, symptom.value, symptom.n) == ("fail", 2.0, 40)


def test_planted_batch_norm_in_training_fires_a3(batch_norm: nn.Module) -> None:
    for module in batch_norm.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    before = {name: b.clone() for name, b in batch_norm.named_buffers()}
    symptom = BatchInvariance()(batch_norm, TEST)
    assert (symptom.status, symptom.effect, symptom.n) == ("fail", "void", 64)
    assert symptom.examples
    assert all(torch.equal(b, before[name]) for name, b in batch_norm.named_buffers()), "running statistics were changed"
    assert [type(m) for m in batch_norm.modules() if m.training] == [nn.BatchNorm2d], "the modes are the caller's"


def test_a3_has_a_threshold_and_sees_flips_below_it(mlp: nn.Module) -> None:
    def leaning(weight: float) -> nn.Module:
        return Around(mlp, lambda inner, x: inner(x) + weight * x.mean())

    assert BatchInvariance()(leaning(10.0), TEST).status == "fail"
    assert BatchInvariance()(leaning(1e-6), TEST).status == "pass"
    tie = Around(mlp, lambda inner, x: torch.stack([x.mean((1, 2, 3)) * 0, 1e-5 * (x.mean((1, 2, 3)) - x.mean())], 1))
    symptom = BatchInvariance()(tie, TEST)
    assert symptom.status == "fail"
    assert symptom.value is not None
    assert symptom.value < 1e-3, "labels flip, though logits hardly move"


def test_a3_large_logits_may_round_and_one_image_alone_must_be_answered(mlp: nn.Module) -> None:
    assert BatchInvariance()(Around(mlp, lambda inner, x: 1e6 * inner(x)), TEST).status == "pass"
    flat = trained(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)), steps=2).train()
    symptom = BatchInvariance()(flat, TEST)
    assert symptom.status == "fail"
    assert "alone gets no answer (ValueError)" in symptom.text


def test_a3_keyed_noise_is_invariant_and_other_noise_is_left_to_a2(mlp: nn.Module) -> None:
    assert BatchInvariance()(Noise(0.1).wrap(mlp), TEST).status == "pass"
    symptom = BatchInvariance()(noisy(mlp, 0.1), TEST)
    assert symptom.status == "not_run"
    assert "see A2" in symptom.text


def test_planted_softmax_fires_a4(mlp: nn.Module) -> None:
    symptom = Probabilities()(Around(mlp, lambda inner, x: inner(x).softmax(1)), TEST)
    assert (symptom.status, symptom.effect, symptom.value, symptom.n) == ("fail", "cap", 1.0, 80)
    half = Around(mlp, lambda inner, x: torch.where((inner(x).amax(1) > 0)[:, None], inner(x).softmax(1), inner(x)))
    assert Probabilities()(half, TEST).status in ("suspect", "fail")
    mixed = Around(mlp, lambda inner, x: torch.cat([inner(x)[:1], inner(x)[1:].softmax(1)]))
    assert Probabilities()(mixed, TEST).status == "suspect"
    assert Probabilities()(Around(mlp, lambda inner, x: 1.001 * inner(x).softmax(1)), TEST).status == "pass", "sums to 1.001"


GRADIENTS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "autograd.grad": lambda net, x: torch.autograd.grad(net(x.requires_grad_(True)).sum(), x),
    "Tensor.backward": lambda net, x: net(x.requires_grad_(True)).sum().backward(),
    "autograd.backward": lambda net, x: torch.autograd.backward(net(x.requires_grad_(True)).sum()),
    "func.grad": lambda net, x: torch.func.grad(lambda z: net(z).sum())(x),
    "func.vjp": lambda net, x: torch.func.vjp(lambda z: net(z).sum(), x)[1](torch.ones(())),
    "func.jvp": lambda net, x: torch.func.jvp(lambda z: net(z).sum(), (x,), (torch.ones_like(x),)),
    "jacobian": lambda net, x: torch.autograd.functional.jacobian(lambda z: net(z).sum(), x),
}


def test_planted_optimisation_fires_a5(mlp: nn.Module) -> None:
    symptom = OptimisationInForward()(purified(mlp), TEST)
    assert (symptom.status, symptom.effect, symptom.value, symptom.n) == ("fail", "cap", 6, 32)
    assert "6 gradient calls" in symptom.text


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, at the first jvp
@pytest.mark.parametrize("name", GRADIENTS)
def test_a5_sees_every_way_to_a_gradient(name: str, linear_net: nn.Module) -> None:
    def forward(inner: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            GRADIENTS[name](inner, x.detach().clone())
        out: Tensor = inner(x)
        return out

    symptom = OptimisationInForward()(Around(linear_net, forward), FEW)
    assert symptom.value is not None
    assert symptom.status == "fail", f"{name} goes unseen"
    assert symptom.value >= 2, "one in each of the two passes"


def test_a5_sees_a_thread_of_the_model_and_not_its_neighbours(linear_net: nn.Module) -> None:
    def gradient() -> None:
        x = FEW.x.clone().requires_grad_(True)
        with torch.enable_grad():
            linear_net(x).sum().backward()

    def threaded(inner: nn.Module, x: Tensor) -> Tensor:
        worker = threading.Thread(target=gradient)
        worker.start()
        worker.join()
        out: Tensor = inner(x)
        return out

    assert OptimisationInForward()(Around(linear_net, threaded), FEW).value == 2

    asked, answered = threading.Event(), threading.Event()

    def neighbour() -> None:
        asked.wait(10)
        gradient()
        answered.set()

    def meanwhile(inner: nn.Module, x: Tensor) -> Tensor:
        asked.set()
        assert answered.wait(10)
        out: Tensor = inner(x)
        return out

    thread = threading.Thread(target=neighbour)
    thread.start()
    assert OptimisationInForward()(Around(linear_net, meanwhile), FEW).value == 0, "somebody else's gradient was counted"
    thread.join()


def test_a5_puts_torch_back_after_an_exception(linear_net: nn.Module) -> None:
    def forward(inner: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner(x.detach().requires_grad_(True)).sum().backward()
        raise RuntimeError("the model broke")

    engine = Variable._execution_engine
    with pytest.raises(RuntimeError, match="the model broke"):
        OptimisationInForward()(Around(linear_net, forward), FEW)
    assert Variable._execution_engine is engine


def test_a6_counts_classes(linear_net: nn.Module) -> None:
    assert ClassCount(needed=10)(linear_net, TEST).status == "pass"
    symptom = ClassCount(needed=11)(linear_net, TEST)
    assert (symptom.status, symptom.effect, symptom.value, symptom.threshold) == ("fail", "note", 10, 11)
    three = Around(linear_net, lambda inner, x: inner(x)[:, :3])
    assert "labels use 10" in ClassCount()(three, TEST).text
    assert ClassCount()(three, TEST).status == "fail"
    assert ClassCount()(Around(linear_net, lambda inner, x: inner(x)[:, 0]), TEST).status == "fail"


@pytest.mark.parametrize(("factor", "status"), [(1.0, "pass"), (1.05, "pass"), (1.2, "fail"), (0.8, "fail"), (-1.0, "fail")])
def test_a8_error_is_in_closed_form(factor: float, status: str, linear_net: nn.Module) -> None:
    """A gradient that is `factor` times too long errs by |1 - 1/factor|, in every direction, on a linear model."""
    net = Around(linear_net, lambda inner, x: inner(Scaled.apply(x, factor)))
    symptom = GradientRight()(net, FEW)
    assert symptom.status == status, symptom
    assert f"median error {abs(1 - 1 / factor):.1e}" in symptom.text


def test_a8_judges_each_image(mlp: nn.Module) -> None:
    """Wrong on a few of the images only, where a median over all of them would see nothing."""
    bright = FEW.x.mean((1, 2, 3)).topk(6).values[-1]

    def forward(inner: nn.Module, x: Tensor) -> Tensor:
        some = (x.mean((1, 2, 3)) >= bright - 0.02)[:, None, None, None]
        out: Tensor = inner(torch.where(some, Reversed.apply(x), x))
        return out

    symptom = GradientRight()(Around(mlp, forward), FEW)
    assert symptom.status == "fail"
    assert symptom.value is not None
    assert 0 < symptom.value < 0.5


def test_a8_sees_a_slope_that_is_hidden_in_stairs(linear_net: nn.Module) -> None:
    """Half of the answer climbs in stairs of a quarter of a level: no gradient there, though the function rises as before."""
    net = Around(linear_net, lambda inner, x: (inner(x) + inner((1023 * x).round() / 1023)) / 2)
    assert GradientRight()(net, TEST).status == "fail"
    assert GradientPresent()(net, TEST).status == "pass"


def test_a8_compares_like_with_like_where_a_model_draws(mlp: nn.Module) -> None:
    for draws in (Noise(0.1).wrap(mlp), noisy(mlp, 0.1)):
        assert GradientRight()(draws, FEW).status == "pass", "the noise, not the gradient, was judged"


def test_a8_falls_back_to_float32(mlp: nn.Module) -> None:
    net = Around(mlp, lambda inner, x: inner(x.float()))
    symptom = GradientRight()(net, FEW)
    assert symptom.status == "pass"
    assert "float32" in symptom.text, "the weights are float64 in the copy, and the input is not"


def test_nothing_is_right_about_a_constant_or_an_absent_answer(mlp: nn.Module) -> None:
    constant = Around(mlp, lambda inner, x: torch.ones(len(x), 1) @ torch.arange(10.0)[None])
    for test in (GradientRight(), QuantisedInput()):
        assert test(constant, FEW).status == "not_run", test
    nothing = Around(mlp, lambda inner, x: inner(x) * torch.nan)
    for key, test in battery().items():
        if key not in ("A1", "A5", "A6"):
            assert test(nothing, FEW).status in ("fail", "not_run"), f"{key}: nan passes"
    none = TEST[slice(0, 0)]
    for key, test in battery().items():
        if key not in ("A1", "A7"):
            assert test(mlp, none).status == "not_run", f"{key}: no image passes"


def test_a9_leaves_labels_and_flat_answers_alone(mlp: nn.Module) -> None:
    labels = Around(mlp, lambda inner, x: F.one_hot(inner(x).argmax(1), 10).float())
    assert QuantisedInput()(labels, TEST).status == "not_run"
    assert QuantisedInput()(noisy(mlp, 0.1), TEST).status == "pass"
    rounded = Around(mlp, lambda inner, x: inner((15 * x).round() / 15))
    for hidden in (Noise(1e-3).wrap(rounded), noisy(rounded, 1e-3)):
        assert QuantisedInput()(hidden, TEST).status == "fail", "stairs hide behind noise"


CONVENTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "2x-1": lambda x: 2 * x - 1,
    "255x": lambda x: 255 * x,
    "(x-mean)/std": lambda x: (x - TRAIN.x.mean()) / TRAIN.x.std(),
}


@pytest.mark.parametrize("wanted", CONVENTIONS)
def test_planted_other_range_fires_a10(wanted: str) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

    split = DIGITS.split("evaluation")
    net = trained(build, steps=60, seen=CONVENTIONS[wanted], lr=1e-3 if wanted == "255x" else 0.02)
    mended = Around(net, lambda inner, x: inner(CONVENTIONS[wanted](x)))
    symptom = InputContract()(net, split)
    assert (symptom.status, symptom.effect, symptom.n) == ("fail", "void", 400), symptom
    assert symptom.text.startswith("preprocessing mismatch")
    right = (mended(split.x).argmax(1) == split.y).float().mean() - (net(split.x).argmax(1) == split.y).float().mean()
    assert symptom.value is not None
    assert symptom.value >= float(right) - 0.02, "at least what the right preprocessing gains"
    assert InputContract()(mended, split).status == "pass"


def test_a10_names_the_range_that_wins() -> None:
    """Class 1 is above one half, most images are, and the model puts its boundary at 0: right for 2x-1 alone."""
    level = torch.linspace(0.4, 1, 120)
    split = Split(level[:, None] * torch.ones(120, 4), (level > 0.5).long(), tuple(map(str, range(120))))

    def centred(z: Tensor) -> Tensor:
        return torch.stack([-z.mean(1), z.mean(1)], 1)

    symptom = InputContract()(centred, split)
    assert symptom.status == "fail"
    assert "2x-1 gets 100.0% right" in symptom.text
    assert symptom.value == pytest.approx(1 - float(split.y.float().mean()))


def test_a10_needs_images_and_reads_three_channels() -> None:
    assert InputContract()(linear(), TEST[slice(0, 7)]).status == "not_run"
    mean, deviation = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    x = torch.zeros(60, 3, 2, 2) + (mean + deviation * torch.linspace(-1, 1, 60)[:, None])[:, :, None, None]
    split = Split(x, (torch.arange(60) >= 30).long(), tuple(map(str, range(60))))

    def photographs(z: Tensor) -> Tensor:
        score = z.mean((1, 2, 3))
        return torch.stack([-score, score], 1)

    symptom = InputContract()(photographs, split)
    assert symptom.status == "fail"
    assert symptom.value == pytest.approx(0.5)


def test_planted_detector_fires_a11(mlp: nn.Module) -> None:
    net = detector(mlp)
    symptom = Abstains(10)(net, TEST)
    rejected = int((net(TEST.x).argmax(1) == 10).sum())
    assert (symptom.status, symptom.effect, symptom.value) == ("fail", "note", rejected / 80)
    assert "1 logits beside the 10 classes" in symptom.text
    assert Abstains(11)(net, TEST).status == "pass"
    assert Abstains(10, abstains=True)(mlp, TEST).status == "fail", "declared"


# ---------------------------------------------------------------- costs, recipes


ROWS = {"forward": 0, "backward": 0}


class Counted(nn.Module):
    """Counts rows outside itself, so that a copy counts too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        ROWS["forward"] += len(x)
        logits: Tensor = self.inner(x)
        if logits.requires_grad:
            logits.register_hook(lambda g: ROWS.update(backward=ROWS["backward"] + len(g)))
        return logits


@pytest.mark.parametrize("n", [0, 5, 40, 80])
def test_passes_are_kept(n: int, linear_net: nn.Module) -> None:
    split = TEST[slice(0, n)]
    for key, test in battery().items():
        ROWS.update(forward=0, backward=0)
        test(Counted(linear_net), split)
        spent = ROWS["forward"] + ROWS["backward"]
        assert spent <= test.passes(n), f"{key} says {test.passes(n)} passes for {n} images, and takes {spent}"
        if n == 40 and key != "A10":
            assert spent == test.passes(n), f"{key} says {test.passes(n)} passes, and takes only {spent}"


def test_every_preflight_test_is_in_the_catalogue_and_can_be_read_back() -> None:
    known = {e.name for e in catalogue.entries("diagnostics")}
    for test in battery(declared=True).values():
        assert type(test).__name__ in known
        assert spec.from_value(Diagnostic, spec.to_dict(test), "test", {}, {}) == test


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Randomised(True, draws=1),
        lambda: Randomised(True, distance=0.0),
        lambda: BatchInvariance(drift=float("nan")),
        lambda: BatchInvariance(images=1),
        lambda: Probabilities(slack=1.0),
        lambda: OptimisationInForward(images=0),
        lambda: ClassCount(needed=1),
        lambda: GradientRight(error=0.0),
        lambda: GradientRight(directions=0),
        lambda: QuantisedInput(radius=0.5 / 255),
        lambda: QuantisedInput(share=0.5),
        lambda: QuantisedInput(draws=1),
        lambda: Abstains(0),
    ],
)
def test_wrong_fields_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match=r"must be .*, got "):
        wrong()
