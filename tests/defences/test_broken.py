"""Every specimen hides its gradient, keeps its labels when relaxed, and falls to an attack on what relax gives back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from defence_fakes import Ascent, DictStore, Net, Small, Toy, same, weights
from torch import Tensor, nn

from firedoor import catalogue, seed
from firedoor.defences.broken.distilled import Distilled
from firedoor.defences.broken.kwta import KWTA
from firedoor.defences.broken.overfit_fast import OverfitFast
from firedoor.defences.broken.quantised_activation import QuantisedActivation
from firedoor.defences.broken.random_pruning import RandomPruning
from firedoor.defences.broken.temperature import Temperature
from firedoor.defences.broken.thermometer import Thermometer
from firedoor.defences.broken.zero_gradient import ZeroGradient
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.fast import Fast
from firedoor.defences.straight_through import value_of
from firedoor.errors import ModelRefused, SpecError
from firedoor.protocols import Access, Classifier, Model, Store
from firedoor.threat import Linf

DATA = Toy()
TEST = DATA.split("evaluation")
SPECIMENS: dict[str, Any] = {
    "Temperature": Temperature(),
    "Thermometer": Thermometer(),
    "QuantisedActivation": QuantisedActivation(2),
    "KWTA": KWTA(),
    "ZeroGradient": ZeroGradient(),
    "Distilled": Distilled(),
    "RandomPruning": RandomPruning(),
    "OverfitFast": OverfitFast(),
}
HIDING = [name for name, s in SPECIMENS.items() if not getattr(s, "honest", False)]
DEAD = ["Temperature", "Thermometer", "QuantisedActivation", "ZeroGradient"]


def build(specimen: Any, key: int = 0) -> nn.Module:
    with seed.forked(key, "weights"):
        module: nn.Module = specimen.build(Small(), DATA.shape, 3)
    return module


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    modules = {}
    for name, specimen in SPECIMENS.items():
        modules[name] = build(specimen)
        Fit(epochs=10, batch_size=16, lr=0.05).train(modules[name], DATA.split("target"), DictStore(), 0)
    return modules


def gradient(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    logits = classifier(x)
    if not logits.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), x, allow_unused=True)
    return torch.zeros_like(x) if g is None else g


def test_every_listed_specimen_is_tested_here_and_says_what_broke_it() -> None:
    assert {e.name for e in catalogue.entries("broken")} == set(SPECIMENS)
    assert all(len(type(s).broken_by) > 10 for s in SPECIMENS.values())
    assert set(SPECIMENS) - set(HIDING) == {"OverfitFast"}, "a specimen that hides its gradient must not call itself honest"


@pytest.mark.parametrize("name", SPECIMENS)
def test_a_specimen_learns(name: str, trained: dict[str, nn.Module]) -> None:
    assert (trained[name](TEST.x).argmax(1) == TEST.y).float().mean() > 0.95


@pytest.mark.parametrize("name", DEAD)
def test_the_gradient_is_dead(name: str, trained: dict[str, nn.Module]) -> None:
    labels = trained[name](TEST.x).argmax(1)
    slope = gradient(trained[name], TEST.x, labels).flatten(1).abs().amax(1)
    assert int((slope == 0).sum()) >= 0.9 * len(TEST)


@pytest.mark.parametrize("name", HIDING)
def test_relax_keeps_the_labels_and_gives_every_image_a_gradient(name: str, trained: dict[str, nn.Module]) -> None:
    module = trained[name]
    before, names = weights(module), [n for n, _ in module.named_modules()]
    relaxed = SPECIMENS[name].relax(module)
    assert relaxed is not module
    assert not relaxed.training
    with seed.streams(0, TEST.ids):
        hard, soft = module(TEST.x), relaxed(TEST.x)
        slope = gradient(relaxed, TEST.x, TEST.y).flatten(1).abs().amax(1)
    assert (hard.argmax(1) == soft.argmax(1)).float().mean() >= 0.9
    if name not in ("Temperature", "Distilled", "RandomPruning"):
        assert torch.equal(hard, soft), "the forward pass must be exact"
    assert int((slope > 0).sum()) == len(TEST)
    assert same(before, weights(module))
    assert [n for n, _ in module.named_modules()] == names
    with seed.streams(0, TEST.ids):
        assert torch.equal(module(TEST.x), hard), "relaxing changed the specimen"
    assert {p.data_ptr() for p in relaxed.parameters()} == {p.data_ptr() for p in module.parameters()}, "the same weights"


@pytest.mark.parametrize("name", DEAD)
def test_the_naive_attack_is_fooled_and_the_relaxed_one_is_not(name: str, trained: dict[str, nn.Module]) -> None:
    module, attack = trained[name], Ascent(Linf(56 / 255), steps=10, share=0.2)

    def accuracy(x: Tensor) -> float:
        return float((module(x).argmax(1) == TEST.y).float().mean())

    with seed.streams(0, TEST.ids):
        if name == "ZeroGradient":
            naive = TEST.x
            with pytest.raises(RuntimeError, match="does not require grad"):
                attack(module, TEST.x, TEST.y)
        else:
            naive = attack(module, TEST.x, TEST.y) if name != "Thermometer" else TEST.x
        adaptive = attack(SPECIMENS[name].relax(module), TEST.x, TEST.y)
    assert accuracy(naive) > 0.9, "the specimen does not mask"
    assert accuracy(adaptive) < 0.5, "relax does not break it"


def test_averaging_over_draws_breaks_random_pruning(trained: dict[str, nn.Module]) -> None:
    """The specimen is no more right under the averaged attack than under one that follows single draws, and it falls."""
    module, attack = trained["RandomPruning"], Ascent(Linf(56 / 255), steps=8, share=0.25)

    def accuracy(x: Tensor) -> float:
        rows = x.repeat(10, 1, 1, 1)  # 10 answers to each image
        with seed.streams(1, TEST.ids):
            return float((module(rows).argmax(1) == TEST.y.repeat(10)).float().mean())

    with seed.streams(0, TEST.ids):
        naive, adaptive = attack(module, TEST.x, TEST.y), attack(RandomPruning(n=10).relax(module), TEST.x, TEST.y)
    assert accuracy(TEST.x) > 0.9
    assert accuracy(adaptive) < 0.5
    assert accuracy(adaptive) <= accuracy(naive)


def test_an_overfit_network_is_itself_when_relaxed_and_learns_to_beat_one_step_only() -> None:
    """At a budget of over half the gap between classes nothing is robust, and one-step training learns the corners it is shown."""
    specimen, threat, split = OverfitFast(), Linf(64 / 255), DATA.split("target")
    module = build(specimen)
    assert specimen.relax(module) is module
    assert same(weights(module), weights(build(specimen))), "relaxing changed it"
    fit = Fit(loss=Fast(threat, step=2.0, guard=False), epochs=60, batch_size=16, lr=0.003, optimiser="adamw", schedule="constant")
    fit.train(module, split, DictStore(), 0)

    def accuracy(attack: Ascent) -> float:
        with seed.streams(0, split.ids):
            return float((module(attack(module, split.x, split.y)).argmax(1) == split.y).float().mean())

    one, many = accuracy(Ascent(threat)), accuracy(Ascent(threat, steps=50, start=True, share=0.05))
    assert one - many > 0.5, (one, many)


def test_temperature_of_1_is_the_bare_network_bit_for_bit_and_training_is_unscaled() -> None:
    with seed.forked(0, "weights"):
        bare = Net(DATA.shape, 3).eval()
    assert torch.equal(build(Temperature(1.0)).eval()(TEST.x), bare(TEST.x))
    hot = build(Temperature(1e4))
    assert torch.equal(hot.eval()(TEST.x), 1e4 * bare(TEST.x))
    assert torch.equal(hot.train()(TEST.x), bare.train()(TEST.x))


def test_thermometer_codes_are_the_published_truth_values() -> None:
    class Show(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Plain:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            assert shape == (8, 1, 2)
            return Show()

    code = Thermometer(levels=4).build(Plain(), (2, 1, 2), 3)(torch.tensor([[[[0.0, 0.3]], [[1.0, 0.5]]]]))
    wanted = [[0, 1], [0, 1], [0, 0], [0, 0], [1, 1], [1, 1], [1, 0], [1, 0]]  # x > 0, 1/4, 1/2, 3/4 per channel
    assert code[0, :, 0].tolist() == wanted
    flat = Thermometer(levels=2).build(Flat(), (3,), 2)(torch.tensor([[0.2, 0.6, 0.0]]))
    assert flat.tolist() == [[1, 0, 1, 1, 0, 0]]


class Flat:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        assert shape == (6,)
        return nn.Identity()


def test_winners_take_all_keeps_the_largest_share_per_example() -> None:
    class Bare:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.GELU())

    module = KWTA(keep=0.4).build(Bare(), (5,), 5)
    x = torch.tensor([[3.0, -1.0, 2.0, 0.0, 1.0], [-5.0, -1.0, -2.0, -3.0, -4.0]])
    assert module(x).tolist() == [[3, 0, 2, 0, 0], [0, -1, -2, 0, 0]]
    assert torch.equal(KWTA(keep=1.0).build(Bare(), (5,), 5)(x), x)


def test_quantised_activations_have_few_levels_and_train_straight_through() -> None:
    class Bare:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.ReLU())

    module = QuantisedActivation(bits=1).build(Bare(), (4,), 4)
    x = torch.tensor([[-1.0, 0.2, 0.3, 1.1]], requires_grad=True)
    for training, slope in ((True, [0, 1, 1, 1]), (False, [0, 0, 0, 0])):
        module.train(training)
        out = module(x)
        assert out.tolist() == [[0, 0, 0.5, 1]]
        (g,) = torch.autograd.grad(out.sum(), x)
        assert g.tolist() == [slope]


def test_distilled_is_masked_once_its_teacher_and_student_are_trained_hot() -> None:
    temperature = 40.0
    cold, student = build(Distilled(1.0)), build(Distilled(temperature), key=1)
    teacher = build(Distilled(temperature), key=2)
    split, store = DATA.split("target"), DictStore()
    fit = {"epochs": 40, "batch_size": 20, "lr": 0.01, "optimiser": "adamw"}
    Fit(**fit).train(cold, split, store, 0)  # type: ignore[arg-type]
    Fit(loss=CrossEntropy(temperature), **fit).train(teacher, split, store, 0)  # type: ignore[arg-type]

    class Recipe:
        access = Access.GRADIENTS
        stochastic = False

        def load(self, store: Store) -> Classifier:
            return teacher

        def relax(self) -> Model:
            return self

    Fit(loss=Distillation(Recipe(), temperature), **fit).train(student, split, store, 0)  # type: ignore[arg-type]
    assert (student(TEST.x).argmax(1) == TEST.y).float().mean() > 0.95
    plain = gradient(cold, TEST.x, TEST.y).flatten(1).abs().amax(1).median()
    hidden = gradient(student, TEST.x, TEST.y).flatten(1).abs().amax(1).median()
    found = gradient(Distilled(temperature).relax(student), TEST.x, TEST.y).flatten(1).abs().amax(1).median()
    assert hidden < 0.01 * plain
    assert found > 100 * hidden


def test_value_of_is_exact_and_sends_the_gradient_elsewhere() -> None:
    x = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    out = value_of(torch.tensor([1e8, 1 / 3, -1.0]), gradient_of=x**2)
    assert torch.equal(out, torch.tensor([1e8, 1 / 3, -1.0]))
    (g,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(g, 2 * x.detach())


def test_wrong_use_is_refused() -> None:
    other = Net(DATA.shape, 3)
    for specimen in (Temperature(), Thermometer(), QuantisedActivation(), KWTA(), ZeroGradient(), RandomPruning()):
        with pytest.raises(ModelRefused, match="relaxes what it built, got a Net"):
            specimen.relax(other)  # type: ignore[attr-defined]

    class Functional:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Linear(2, 2))

    class Twice:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            same = nn.ReLU()
            return nn.Sequential(same, nn.Linear(2, 2), same)

    assert not any(isinstance(m, nn.ReLU) for m in KWTA().build(Twice(), (2,), 2).modules()), "a shared layer was overlooked"
    for specimen in (KWTA(), QuantisedActivation(), RandomPruning()):
        with pytest.raises(ModelRefused, match="activations that are layers"):
            specimen.build(Functional(), (2,), 2)  # type: ignore[attr-defined]
    makers = [
        lambda: Temperature(0.0),
        lambda: Thermometer(1),
        lambda: QuantisedActivation(-1),
        lambda: KWTA(0.0),
        lambda: Distilled(0.0),
        lambda: RandomPruning(0.0),
        lambda: RandomPruning(n=0),
    ]
    for make in makers:
        with pytest.raises(SpecError, match="got"):
            make()  # type: ignore[no-untyped-call]
