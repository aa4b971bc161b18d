"""Networks that answer at random: what they draw and when, how their draws are voted on, and what an attacker makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from defence_fakes import Ascent, DictStore, Small, Toy, net, same, weights
from torch import Tensor, nn

from firedoor import craft, seed, spec, study
from firedoor.architectures import MLP, VGG, ResNet, SmallCNN, ViT
from firedoor.architectures.inner_noise import InnerNoise
from firedoor.defences.broken.kwta import KWTA
from firedoor.defences.broken.overfit_fast import OverfitFast
from firedoor.defences.broken.random_pruning import RandomPruning
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.madry import Madry
from firedoor.defences.wrappers.noise import Noise
from firedoor.defences.wrappers.vote import Vote
from firedoor.errors import ModelRefused, SpecError
from firedoor.expectation import Expectation
from firedoor.models.trained import Expected, RelaxedSpecimen, Trained
from firedoor.models.wrapped import Wrapped
from firedoor.protocols import Architecture
from firedoor.threat import Linf

DATA = Toy()
SPLIT, TEST = DATA.split("target"), DATA.split("evaluation")
FIT = Fit(epochs=3, batch_size=16, lr=0.05)


def built(architecture: Architecture, shape: tuple[int, ...] = (1, 8, 8), key: int = 0) -> nn.Module:
    with seed.forked(key, "weights"):
        return architecture.build(shape, 3)


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


# ------------------------------------------------------------------ noise inside


@pytest.mark.parametrize("bare", [Small(0.2), SmallCNN(), ResNet(8, 4), MLP(8), ViT(16, 1, 2)], ids=lambda a: type(a).__name__)
def test_no_noise_is_the_bare_network_bit_for_bit(bare: Architecture) -> None:
    quiet, plain = built(InnerNoise(bare, 0.0, 0.0)), built(bare)
    assert same(weights(quiet), weights(plain))
    assert torch.equal(quiet.eval()(TEST.x), plain.eval()(TEST.x))
    for module in (quiet, plain):
        FIT.train(module, SPLIT, DictStore(), 0)
    assert same(weights(quiet), weights(plain)), "training differs"


@dataclass(frozen=True)
class Chain:
    """Layers that change nothing, of the kinds given: what comes out is the pixels and the noise of every layer."""

    kinds: tuple[str, ...]

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        d = math.prod(shape)
        layers: list[nn.Module] = []
        for kind in self.kinds:
            if kind == "conv":
                layers.append(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)))
                nn.init.ones_(layers[-1][0].weight)  # type: ignore[index, arg-type]
            else:
                layers += [nn.Flatten(), nn.Linear(d, d, bias=False)]
                nn.init.eye_(layers[-1].weight)  # type: ignore[arg-type]
        return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("kinds", "variance"),
    [
        (("conv",), 0.09),
        (("conv", "conv", "conv"), 0.09 + 2 * 0.01),
        (("conv", "conv", "linear", "linear"), 0.09 + 0.01),  # linear layers are left alone where there are convolutions
        (("linear", "linear"), 0.09 + 0.01),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_the_noise_has_its_deviations_before_the_right_layers(kinds: tuple[str, ...], variance: float, training: bool) -> None:
    module = InnerNoise(Chain(kinds), first=0.3, inner=0.1).build((1, 8, 8), 3).train(training)
    x = torch.full((500, 1, 8, 8), 0.5)
    with seed.forked(0), seed.streams(0, names(500)):
        change = (module(x).view_as(x) - x).detach().flatten()
    assert float(change.mean()) == pytest.approx(0, abs=4 * (variance / len(change)) ** 0.5)
    assert float(change.var()) == pytest.approx(variance, rel=4 * (2 / len(change)) ** 0.5)


def test_the_first_layer_is_the_first_that_the_network_lists_not_the_first_at_the_top() -> None:
    class Nested:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Conv2d(1, 1, 1))

    module: Any = InnerNoise(Nested(), 0.3, 0.1).build((1, 8, 8), 3)
    assert (module[0][0].sigma, module[1].sigma) == (0.3, 0.1)


def test_noise_leaves_the_initial_weights_and_a_shared_layer_alone() -> None:
    noisy, plain = built(InnerNoise(VGG(4))), built(VGG(4))
    for a, b in zip(noisy.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)

    class Twice:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            layer = nn.Conv2d(1, 1, 1)
            return nn.Sequential(layer, nn.ReLU(), layer)

    shared = InnerNoise(Twice()).build((1, 8, 8), 3)
    assert shared[0] is shared[2]  # type: ignore[index]
    assert len(list(shared.parameters())) == 2


def test_every_answer_is_another_one_and_none_depends_on_the_batch() -> None:
    module = built(InnerNoise(SmallCNN(8))).eval()
    with seed.streams(0, TEST.ids):
        first, second = module(TEST.x), module(TEST.x)
    with seed.streams(0, TEST.ids):
        again = module(TEST.x)
    with seed.streams(0, TEST.ids, draw=1):
        other = module(TEST.x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    rows = [41, 3, 17]
    with seed.streams(0, [TEST.ids[i] for i in rows]):
        torch.testing.assert_close(module(TEST.x[rows]), first[rows], rtol=1e-4, atol=1e-5)


def test_training_draws_as_dropout_does() -> None:
    """Same seed, same weights; nothing outside moves; and an inner attack neither sees nor shifts the noise of the weight step."""
    recipe = InnerNoise(Small(0.2))
    runs = []
    for loss, key in ((CrossEntropy(), 0), (CrossEntropy(), 0), (CrossEntropy(), 1), (Madry(Ascent(Linf(0.0), steps=3)), 0)):
        torch.manual_seed(len(runs))
        before, module = torch.random.get_rng_state(), built(recipe)
        Fit(loss=loss, epochs=2, batch_size=16, lr=0.02).train(module, SPLIT, DictStore(), key)
        assert torch.equal(before, torch.random.get_rng_state()), "training moved the global generator"
        runs.append(list(weights(module).values()))
    equal = [all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True)) for run in runs]
    assert equal == [True, True, False, True]
    quiet = built(Small(0.2))
    Fit(epochs=2, batch_size=16, lr=0.02).train(quiet, SPLIT, DictStore(), 0)
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], weights(quiet).values(), strict=True)), "no noise in training"


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, True])
def test_wrong_deviations_are_refused(value: float) -> None:
    for make in (lambda: InnerNoise(Small(), first=value), lambda: InnerNoise(Small(), inner=value)):
        with pytest.raises(SpecError, match=r"InnerNoise: (first|inner) must be 0 or more and finite, got"):
            make()


def test_a_network_without_layers_to_disturb_is_refused() -> None:
    class Nothing:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten())

    with pytest.raises(ModelRefused, match="convolutions or linear layers inside, got Sequential without"):
        InnerNoise(Nothing()).build((1, 8, 8), 3)


# ------------------------------------------------------------------ what a trained recipe says of itself


NOISY = Trained(InnerNoise(Small()), DATA, FIT)


@pytest.mark.parametrize(
    ("model", "stochastic", "relaxed"),
    [
        (Trained(Small(), DATA, FIT), False, "itself"),
        (Trained(Small(), DATA, FIT, specimen=KWTA()), False, "RelaxedSpecimen"),
        (Trained(Small(), DATA, FIT, specimen=OverfitFast()), False, "itself"),
        (Trained(Small(), DATA, FIT, specimen=RandomPruning()), True, "RelaxedSpecimen"),
        (NOISY, True, "Expected"),
        (Trained(InnerNoise(Small()), DATA, FIT, specimen=OverfitFast()), True, "Expected"),
        (Trained(InnerNoise(Small()), DATA, FIT, specimen=KWTA()), True, "Expected of RelaxedSpecimen"),
        (Trained(InnerNoise(Small()), DATA, FIT, specimen=RandomPruning()), True, "RelaxedSpecimen"),
    ],
    ids=["plain", "k-WTA", "overfit", "pruned", "noisy", "noisy overfit", "noisy k-WTA", "noisy pruned"],
)
def test_a_recipe_is_stochastic_where_a_part_is_and_relaxes_to_one_mean_over_draws(
    model: Trained, stochastic: bool, relaxed: str
) -> None:
    assert model.stochastic is stochastic
    found = model.relax()
    inner = getattr(found, "model", None)
    said = "itself" if found is model else type(found).__name__
    assert said + (f" of {type(inner).__name__}" if isinstance(inner, RelaxedSpecimen) else "") == relaxed
    assert found.stochastic is stochastic
    assert found.relax() == found


def test_the_keys_of_weights_and_of_crafts_are_as_they_were() -> None:
    plain = Trained(Small(), DATA, FIT, specimen=KWTA())
    assert list(spec.to_dict(plain)) == ["type", "architecture", "data", "fit", "seed", "part", "specimen"]
    assert list(spec.to_dict(plain.relax())) == ["type", "model"]


def test_a_relaxed_random_network_is_the_log_mean_softmax_of_its_draws_over_the_same_weights() -> None:
    store = DictStore()
    live, expected = NOISY.load(store), Expected(NOISY, n=7).load(store)
    assert store.made == ["model"]
    assert isinstance(expected, Expectation)
    assert not expected.training
    assert not any(p.requires_grad for p in expected.parameters())
    with seed.streams(0, TEST.ids):
        got = expected(TEST.x)
    with seed.streams(0, TEST.ids):
        draws = live(TEST.x.repeat(7, 1, 1, 1)).view(7, len(TEST), 3).softmax(2)
    torch.testing.assert_close(got.exp(), draws.mean(0))
    assert float(draws.std(0).max()) > 1e-3, "the draws are all the same"
    with pytest.raises(SpecError, match="n must be a whole number of 1 or more, got 0"):
        Expected(NOISY, n=0)


def test_the_family_of_a_noisy_network_is_randomisation() -> None:
    assert study.family_of(NOISY) == "randomisation"
    assert study.family_of(NOISY.relax()) == "randomisation"
    assert study.family_of(Trained(Small(), DATA, FIT)) == "none"
    assert study.is_exhibit(Trained(Small(), DATA, Fit(loss=Fast(Linf(0.1), guard=False)), specimen=OverfitFast()))


def test_inner_noise_can_be_written_in_a_study_file() -> None:
    table = {"type": "InnerNoise", "architecture": {"type": "SmallCNN", "width": 8}, "first": 0.3}
    assert spec.from_value(Architecture, table, "a", {}, {}) == InnerNoise(SmallCNN(8), first=0.3)
    around = spec.from_value(Architecture, {"type": "InnerNoise"}, "a", {"architecture": {"type": "MLP"}}, {})
    assert around == InnerNoise(MLP()), "the study's own network is what the noise goes into"


# ------------------------------------------------------------------ random pruning


def pruned(share: float, h: Tensor) -> Tensor:
    """What one activation layer makes of h in evaluation."""

    class One:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.ReLU())

    out: Tensor = RandomPruning(share).build(One(), (h.shape[1],), h.shape[1]).eval()(h)
    return out


@pytest.mark.parametrize("share", [0.4, 1.0, 3.0])
def test_pruning_keeps_each_value_as_often_as_r_draws_would_and_keeps_the_mean(share: float) -> None:
    n, h = 4000, torch.tensor([0.0, 0.1, 1.0, 0.4, 2.5])
    r = math.ceil(share * 5)
    chance = 1 - (1 - h.double() / 4) ** r
    with seed.streams(0, names(n)):
        out = pruned(share, h.expand(n, 5)).double()
    kept = (out > 0).double().mean(0)
    assert bool(((kept - chance).abs() <= 4 * (chance * (1 - chance) / n).sqrt()).all()), (kept, chance)
    for column, value, p in zip(out.T, h.double(), chance, strict=True):
        shown = column[column > 0]
        torch.testing.assert_close(shown, (value / p).expand_as(shown), rtol=1e-5, atol=0)
    spread = (h.double() ** 2 * (1 / chance - 1)).nan_to_num().sqrt() / n**0.5
    assert bool(((out.mean(0) - h).abs() <= 4 * spread + 1e-6).all()), "the mean is not what went in"
    assert int((out > 0).sum(1).max()) <= r, "more values stayed than were drawn"


def test_pruning_leaves_training_and_dead_layers_alone_and_passes_a_gradient() -> None:
    specimen = RandomPruning()
    with seed.forked(0, "weights"):
        module = specimen.build(Small(), DATA.shape, 3)
    assert torch.equal(module.train()(TEST.x), net(DATA).train()(TEST.x)), "training is plain"
    with seed.streams(0, names(2)):
        out = pruned(1.0, torch.tensor([[-1.0, -2.0], [0.0, 0.0]]))
    assert torch.equal(out, torch.zeros(2, 2)), "nothing to draw from"
    h = torch.tensor([[1.0, 3.0, -1.0]], requires_grad=True)
    with seed.streams(0, names(1)):
        out = pruned(1.0, h)
    (slope,) = torch.autograd.grad(out.sum(), h)
    torch.testing.assert_close(slope, (out / h).detach().nan_to_num())


# ------------------------------------------------------------------ votes


class Scripted(nn.Module):
    """Draw d of an example answers with row d of a script (n, k)."""

    def __init__(self, script: list[list[float]]) -> None:
        super().__init__()
        self.script = torch.tensor(script)

    def forward(self, x: Tensor) -> Tensor:
        return self.script.repeat_interleave(len(x) // len(self.script), dim=0)


X = torch.zeros(2, 1, 2, 2)


def test_a_vote_is_the_majority_and_the_logits_are_votes_plus_mean_probability() -> None:
    p = torch.tensor([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.01, 0.98, 0.01]])
    got = Vote(3).wrap(Scripted(p.log().tolist()))(X)
    wanted = (torch.tensor([2.0, 1.0, 0.0]) + p.mean(0)) / 4
    torch.testing.assert_close(got.exp(), wanted.expand(2, 3))
    assert got.argmax(1).tolist() == [0, 0], "two of three draws say 0, though the mean probability says 1"
    torch.testing.assert_close(got.exp().sum(1), torch.ones(2))


def test_ties_go_to_the_likelier_label_and_labels_without_votes_stay_finite() -> None:
    tied = [[1.0, 0.0, -200.0], [0.0, 3.0, -200.0]]
    got = Vote(2).wrap(Scripted(tied))(X)
    assert got.argmax(1).tolist() == [1, 1]
    assert bool(torch.isfinite(got).all())
    assert Vote(2).wrap(Scripted(tied[::-1]))(X).argmax(1).tolist() == [1, 1], "the order of draws matters"


def test_a_draw_that_is_not_a_number_is_no_vote_and_no_answer() -> None:
    broken = Vote(2).wrap(Scripted([[1.0, 0.0], [math.nan, 0.0]]))
    assert craft.predict(broken, X, ("a", "b"), 0).tolist() == [-1, -1]


class Coin(nn.Module):
    """Says 0 with chance q, by draws of the stream, and 1 otherwise."""

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q

    def forward(self, x: Tensor) -> Tensor:
        heads = (seed.uniform(x.flatten(1)[:, :1], 0, 1) < self.q).float()
        return torch.cat([heads, 1 - heads], dim=1)


def test_a_vote_of_five_is_right_as_often_as_the_binomial_says_and_stays_random() -> None:
    n, q = 4000, 0.7
    wanted = sum(math.comb(5, k) * q**k * (1 - q) ** (5 - k) for k in (3, 4, 5))
    voted, x, ids = Vote(5).wrap(Coin(q)), torch.zeros(n, 1, 1, 1), names(n)
    with seed.streams(0, ids):
        one, two = voted(x).argmax(1), voted(x).argmax(1)
    assert float((one == 0).float().mean()) == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / n) ** 0.5)
    assert not torch.equal(one, two)
    with seed.streams(0, ids[:7]):
        assert torch.equal(voted(x[:7]).argmax(1), one[:7]), "an answer depends on the batch"
    assert Vote.stochastic


def test_a_vote_of_one_says_what_the_model_says() -> None:
    model = built(InnerNoise(SmallCNN(8), 0.5, 0.5)).eval()
    with seed.streams(0, TEST.ids):
        alone = model(TEST.x).argmax(1)
    with seed.streams(0, TEST.ids):
        assert torch.equal(Vote(1).wrap(model)(TEST.x).argmax(1), alone)


def test_relax_of_a_vote_is_one_expectation_over_what_the_relaxed_model_draws() -> None:
    plain = built(Small()).eval()
    alone = Vote(5).relax(plain)
    assert isinstance(alone, Expectation)
    assert (alone.model, alone.n) == (plain, 5)
    for n, wanted in ((5, 20), (50, 50)):
        stacked = Vote(n).relax(Noise(0.1, n=20).relax(plain))
        assert isinstance(stacked, Expectation)
        assert not isinstance(stacked.model, Expectation), "a mean of means: n times n draws"
        assert stacked.n == wanted
    store, voted = DictStore(), Wrapped(NOISY, Vote(5))
    assert voted.stochastic
    relaxed = voted.relax().load(store)
    with seed.streams(0, TEST.ids):
        got = relaxed(TEST.x)
    with seed.streams(0, TEST.ids):
        torch.testing.assert_close(got, Expectation(NOISY.load(store), 20)(TEST.x))


@pytest.mark.parametrize("n", [0, -1, True, 2.5])
def test_a_vote_of_no_whole_number_is_refused(n: Any) -> None:
    with pytest.raises(SpecError, match="Vote: n must be a whole number of 1 or more, got"):
        Vote(n)


# ------------------------------------------------------------------ averaging breaks it


def test_the_averaged_gradient_is_the_better_guide() -> None:
    """On a noisy network the gradient of the expectation agrees with that of the quiet network more than one draw's does."""
    quiet = built(Small())
    Fit(epochs=8, batch_size=16, lr=0.05).train(quiet, SPLIT, DictStore(), 0)
    noisy = built(InnerNoise(Small(), 0.5, 0.5))
    with torch.no_grad():
        for now, trained in zip((*noisy.parameters(), *noisy.buffers()), (*quiet.parameters(), *quiet.buffers()), strict=True):
            now.copy_(trained)
    noisy.eval()

    def slope(model: nn.Module) -> Tensor:
        x = TEST.x.clone().requires_grad_(True)
        with seed.streams(0, TEST.ids):
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), TEST.y, reduction="sum"), x)
        return g.flatten(1)

    target = slope(Expectation(noisy, 400))
    agreement = {n: float(nn.functional.cosine_similarity(slope(Expectation(noisy, n)), target).mean()) for n in (1, 20)}
    assert agreement[20] > agreement[1] + 0.1, agreement
