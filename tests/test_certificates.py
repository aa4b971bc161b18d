"""Certificates: exact radii of a linear model, exact bounds, abstention where it is due, and that no attack succeeds inside a radius."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from defence_fakes import DictStore, Toy, net, same, weights
from scipy.stats import binom, norm
from torch import Tensor, nn

from firedoor import certificates, cli, seed
from firedoor.architectures.mlp import MLP
from firedoor.attacks.carlini_wagner import CW
from firedoor.attacks.deep_fool import DeepFool
from firedoor.attacks.named.gradient import PGD
from firedoor.certificates import Certificates, Certified, certified_accuracy, largest_radius, linf_note, lower_bound
from firedoor.data.digits import Digits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.noise import NoiseAugmented
from firedoor.defences.wrappers.smoothing import Smoothing
from firedoor.errors import DataError, SpecError
from firedoor.models.trained import Trained
from firedoor.protocols import Access, Model, Split, Store
from firedoor.store import FileStore
from firedoor.threat import L2

DISTANCES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Facing:
    """Two classes of inputs, at known distances on both sides of a plane through the middle of the pixel box."""

    side: int = 2
    distances: tuple[float, ...] = DISTANCES
    each: int = 2
    eight_bit: ClassVar[bool] = False
    classes: ClassVar[tuple[str, ...]] = ("below", "above")

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.side, self.side)

    def normal(self) -> Tensor:
        """The unit vector across the plane."""
        d = self.side**2
        return torch.where(torch.arange(d) % 3 == 0, 1.0, -1.0) / math.sqrt(d)

    def distance(self) -> np.ndarray:
        return np.repeat(self.distances, self.each)

    def split(self, part: str) -> Split:
        n = len(self.distances) * self.each
        y = torch.arange(n) % 2
        signed = torch.tensor(self.distance()) * (2 * y - 1)
        x = 0.5 + signed[:, None].float() * self.normal()
        return Split(x.view(n, *self.shape), y, tuple(f"{part}-{i}" for i in range(n)))

    def digest(self) -> str:
        return f"facing {self.side} {self.distances} {self.each}"


@dataclass(frozen=True)
class Plane:
    """The linear model of that plane, with a margin `steep` times the distance; its smoothed form is itself."""

    data: Facing
    steep: float = 20.0
    broken: bool = False

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def load(self, store: Store) -> nn.Module:
        return _Plane(self)

    def relax(self) -> Model:
        return self


class _Plane(nn.Module):
    def __init__(self, recipe: Plane) -> None:
        super().__init__()
        self.training = False
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        z = self.recipe.steep * ((x - 0.5).flatten(1) @ self.recipe.data.normal())
        logits = torch.stack([-z / 2, z / 2], 1)
        return logits.masked_fill(logits.abs() > self.recipe.steep * 0.2, torch.nan) if self.recipe.broken else logits


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
def test_a_linear_model_certifies_its_distance_within_the_gap_of_the_bound(sigma: float) -> None:
    data = Facing()
    true = data.distance()
    p = norm.cdf(true / sigma)
    gaps = []
    for n in (400, 3_000, 20_000):
        got = Certificates(Plane(data), data, sigma, n0=2_000, n=n).load(DictStore())
        assert bool((got.radii <= true).all()), f"n={n}: a radius is above the distance to the plane"
        fewest = np.floor(n * p - 4 * np.sqrt(n * p * (1 - p))).astype(int)
        bound = np.array([lower_bound(k, n, 0.001) for k in fewest])
        least = np.where(bound > 0.5, sigma * norm.ppf(np.maximum(bound, 0.5)), 0)
        assert bool((got.radii >= least - 1e-12).all()), f"n={n}: a radius is further below the distance than the bound allows"
        assert bool((got.radii <= largest_radius(sigma, n, 0.001)).all())
        given = got.labels >= 0
        assert bool((got.labels == data.split("evaluation").y.numpy())[given].all())
        assert bool((given == (got.radii > 0)).all()), "a radius of 0 is an abstention"
        gaps.append(float((true - got.radii)[true <= 2 * sigma].max()))
    assert gaps[0] > gaps[1] > gaps[2], gaps
    assert gaps[2] < 0.1 * sigma, gaps


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_covers_as_it_says_and_no_more(alpha: float) -> None:
    for n in (10, 137, 1000):
        low = np.array([lower_bound(k, n, alpha) for k in range(n + 1)])
        assert bool((np.diff(low) > 0).all())
        assert low[0] == 0
        tail = binom.sf(np.arange(1, n + 1) - 1, n, low[1:])
        np.testing.assert_allclose(tail, alpha, rtol=1e-6, err_msg="k or more must have probability alpha at the bound")
        for p in (0.03, 0.5, 0.77, 0.999):
            wrong = binom.pmf(np.arange(n + 1), n, p)[low > p].sum()
            assert wrong <= alpha * (1 + 1e-9), f"n={n}, p={p}: the bound lies above p with probability {wrong}"
    assert lower_bound(1000, 1000, 0.001) == pytest.approx(0.001**0.001, rel=1e-12)
    assert largest_radius(0.5, 100_000, 0.001) == pytest.approx(0.5 * 3.81, abs=0.01)  # Cohen et al. 2019: about 4 sigma at most


def test_on_the_boundary_it_abstains() -> None:
    data = Facing(distances=(0.0, 1e-4), each=100)
    got = Certificates(Plane(data), data, 0.25, n=400).load(DictStore())
    assert int((got.labels < 0).sum()) >= 198
    x, ids = data.split("evaluation").x, data.split("evaluation").ids
    with seed.streams(0, ids):
        voted = Smoothing(0.25, n=100).wrap(Plane(data).load(DictStore()))(x).argmax(1)
    assert int((voted == 2).sum()) >= 198
    far = Facing(distances=(0.5,), each=100)
    with seed.streams(0, far.split("evaluation").ids):
        given = Smoothing(0.25, n=100).wrap(Plane(far).load(DictStore()))(far.split("evaluation").x).argmax(1)
    assert torch.equal(given, far.split("evaluation").y)


def test_draws_depend_on_the_example_and_not_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = Facing(), DictStore()
    recipe = Certificates(Plane(data), data, 0.25, n=700)
    whole = recipe.load(store)
    parts = [replace(recipe, start=i, stop=i + 5).load(store) for i in (0, 5, 10)]
    assert np.array_equal(np.concatenate([p.labels for p in parts]), whole.labels)
    assert np.array_equal(np.concatenate([p.radii for p in parts]), whole.radii)
    assert store.made == ["certificates"] * 4
    recipe.load(store)
    assert store.made == ["certificates"] * 4, "what the store has is not done again"
    assert whole.labels.dtype == np.int64
    assert whole.radii.dtype == np.float64
    assert not np.array_equal(replace(recipe, seed=1).load(store).radii, whole.radii)
    monkeypatch.setattr(certificates, "DRAWS", 123)
    other = recipe.load(DictStore())
    assert not np.array_equal(other.radii, whole.radii), "draws are numbered by blocks of a size that the shape fixes"


def test_answers_that_are_not_finite_certify_nothing() -> None:
    data = Facing(distances=(0.1, 0.8), each=2)
    sound = Certificates(Plane(data), data, 0.12, n=500).load(DictStore())
    got = Certificates(Plane(data, broken=True), data, 0.12, n=500).load(DictStore())
    assert bool((got.radii <= sound.radii).all())
    assert got.labels[2:].tolist() == [-1, -1], "all but no draw of the far images has an answer"
    with seed.streams(0, data.split("evaluation").ids):
        voted = Smoothing(0.12, n=20).wrap(Plane(data, broken=True).load(DictStore()))(data.split("evaluation").x)
    assert bool(voted[2:].isnan().any(1).all()), "a vote with a draw that is NaN is no answer"


def test_certificates_go_through_the_file_store_and_report_progress(tmp_path: Path) -> None:
    data = Facing()
    recipe, seen = Certificates(Plane(data), data, 0.25, n=100), list[tuple[int, int]]()
    got = recipe.load(FileStore(tmp_path), lambda done, total: seen.append((done, total)))
    again = recipe.load(FileStore(tmp_path), lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]
    assert np.array_equal(got.radii, again.radii)
    assert recipe.seconds(FileStore(tmp_path)) > 0


def test_certified_accuracy_counts_abstentions_as_wrong() -> None:
    y, labels = np.array([0, 1, 0, 1]), np.array([0, 1, -1, 0])
    got = [certified_accuracy(y, labels, np.array([0.5, 0.2, 0.0, 2.0]), r).value for r in (0, 0.2, 0.21, 0.5, 0.51)]
    assert got == [0.5, 0.5, 0.25, 0.25, 0.0]
    assert certified_accuracy(y, labels, np.zeros(4), 0).n == 4


def test_the_note_on_linf_has_the_right_numbers() -> None:
    text = linf_note((3, 32, 32), 8 / 255, 0.5)
    for words in ("0.0314 (8/255) in 3x32x32 reaches L2 1.74", "0.50 / sqrt(3072) = 0.0090 (2.3/255) only", "does not cover"):
        assert words in text, text
    assert "reaches L2 12.17" in linf_note((3, 224, 224), 8 / 255, 1.0)
    assert "So it covers that Linf ball." in linf_note((3, 32, 32), 8 / 255, 1.74)


# ---------------------------------------------------------------- the deployed vote, its relaxation, and its training


@pytest.fixture(scope="module")
def toy() -> nn.Module:
    module = net(Toy(), key=1)
    Fit(loss=NoiseAugmented(0.1), epochs=6, batch_size=16, lr=0.05).train(module, Toy().split("target"), DictStore(), 0)
    return module.eval()


def test_without_noise_the_labels_are_those_of_the_model(toy: nn.Module) -> None:
    x = Toy().split("evaluation").x
    for wrapped in (Smoothing(0.0, n=1).wrap(toy), Smoothing(0.0).wrap(toy)):
        assert torch.equal(wrapped(x).argmax(1), toy(x).argmax(1))
    torch.testing.assert_close(Smoothing(0.0).relax(toy)(x)[:, :3], toy(x).log_softmax(1))


def test_the_vote_abstains_exactly_where_the_binomial_test_does_not_reject(toy: nn.Module) -> None:
    test, wrapper = Toy().split("evaluation"), Smoothing(2.0, n=50, alpha=0.01, m=8)
    with seed.streams(0, test.ids):
        got = wrapper.wrap(toy)(test.x)
    with seed.streams(0, test.ids):  # the same draws, by hand: groups of m
        logits = torch.cat([toy(wrapper.noisy(test.x.repeat(g, 1, 1, 1))).view(g, len(test), 3) for g in (8,) * 6 + (2,)])
    votes = nn.functional.one_hot(logits.argmax(2), 3).sum(0)
    assert got.shape == (60, 4)
    first, second = votes.topk(2).values.unbind(1)
    p = np.minimum(1, 2 * binom.sf(first.numpy() - 1, (first + second).numpy(), 0.5))
    assert 5 < int((p > 0.01).sum()) < 55, "both kinds must occur"
    assert np.array_equal(got.argmax(1).numpy() == 3, p > 0.01)
    by_hand = ((votes + logits[:8].softmax(2).mean(0)) / 51).log()
    torch.testing.assert_close(got[:, :3], by_hand)
    closed = torch.from_numpy(p <= 0.01)
    assert torch.equal(got.argmin(1)[closed], torch.full_like(got.argmin(1)[closed], 3))


@pytest.mark.parametrize("relaxed", [False, True])
def test_an_answer_is_keyed_by_example_and_has_a_gradient(toy: nn.Module, relaxed: bool) -> None:
    test, wrapper = Toy().split("evaluation"), Smoothing(0.2, n=30, m=7)
    classifier = (wrapper.relax if relaxed else wrapper.wrap)(toy)
    x = test.x.clone().requires_grad_()
    with seed.streams(0, test.ids):
        whole = classifier(x)
    rows = [41, 3, 17]
    with seed.streams(0, [test.ids[i] for i in rows]):
        torch.testing.assert_close(classifier(test.x[rows]), whole[rows].detach(), rtol=1e-4, atol=1e-5)
    with seed.streams(0, test.ids, draw=1):
        assert not torch.equal(classifier(test.x), whole)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(whole[:, :3], test.y, reduction="sum"), x)
    assert bool(torch.isfinite(g).all())
    assert bool((g.flatten(1).abs().amax(1) > 0).all())
    if relaxed:
        assert bool((whole[:, 3] <= whole[:, :3].amin(1) - 99).all()), "the abstain logit must lie far below"
        with seed.streams(0, test.ids):
            draws = toy(wrapper.noisy(test.x.repeat(7, 1, 1, 1))).view(7, 60, 3)
        torch.testing.assert_close(whole[:, :3].exp(), draws.softmax(2).mean(0))


def test_training_with_noise_of_size_0_is_plain_and_else_is_not() -> None:
    def trained(loss: Any) -> dict[str, Tensor]:
        module = net(Toy(), 0.2)
        Fit(loss=loss, epochs=2, batch_size=16, lr=0.02, augment="shift").train(module, Toy().split("target"), DictStore(), 0)
        return weights(module)

    assert same(trained(NoiseAugmented(0.0)), trained(CrossEntropy()))
    assert same(trained(NoiseAugmented(0.1)), trained(NoiseAugmented(0.1)))
    assert not same(trained(NoiseAugmented(0.1)), trained(CrossEntropy()))


def test_training_sees_fresh_noise_of_the_deviation_it_says() -> None:
    from firedoor.protocols import Batch

    split, shown = Toy().split("target"), list[Tensor]()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shown.append(x - split.x)
            return x.flatten(1)[:, :3]

    loss = NoiseAugmented(0.3).start(DictStore(), split)
    for epoch in (0, 1):
        with seed.streams(0, split.ids, draw=epoch):
            loss(Spy(), Batch(split.x, split.y, split.ids, epoch))
    assert not torch.equal(*shown)
    assert float(torch.cat(shown).std()) == pytest.approx(0.3, rel=0.03)


def test_fields_that_make_no_sense_are_refused_with_a_remedy() -> None:
    data = Facing()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: Smoothing(-1.0), "sigma must be 0 or more, got -1"),
        (lambda: Smoothing(0.1, n=10), "n must be 11 or more for alpha 0.001, got 10: it would always abstain"),
        (lambda: Smoothing(0.1, alpha=0.0), "alpha must lie between 0 and 1"),
        (lambda: Smoothing(0.1, m=0), "m must be 1 or more"),
        (lambda: NoiseAugmented(math.nan), "sigma must be 0 or more, got nan"),
        (lambda: Certificates(Plane(data), data, 0.0), "sigma must be positive, got 0"),
        (lambda: Certificates(Plane(data), data, 0.1, n=9), "n must be 10 or more for alpha 0.001, got 9"),
        (lambda: Certificates(Plane(data), data, 0.1, n0=0), "n0 must be 1 or more"),
        (lambda: Certificates(Plane(data), data, 0.1, alpha=1.0), "alpha must lie between 0 and 1"),
    ]
    for make, text in cases:
        with pytest.raises(SpecError, match=text):
            make()
    Smoothing(0.1, n=11)
    assert Certificates(Plane(data), data, 0.1, n=10).load(DictStore()).radii.max() > 0
    with pytest.raises(DataError, match=r"got none in 12\.\.None"):
        Certificates(Plane(data), data, 0.1, start=12).load(DictStore())


# ---------------------------------------------------------------- no attack succeeds inside a radius


def attacked(
    classifier: nn.Module, x: Tensor, label: Tensor, radii: Tensor, runs: dict[str, int], share: float
) -> Iterator[Tensor]:
    """x_adv of each run of each attack, for the images that it moved (NaN for the others), at `share` of each radius.

    Images of similar radii are attacked together, at the least radius among them; then each change is stretched. The box may cut it.
    """
    groups = radii.argsort().chunk(max(1, len(x) // 40))
    makers: dict[str, Callable[[L2], Any]] = {
        "PGD": lambda threat: PGD(threat, steps=10, step_size=threat.eps / 3, objective="margin"),
        "CW": lambda threat: CW(threat, steps=15, searches=2, c=1.0, learning_rate=0.02),
        "DeepFool": lambda threat: DeepFool(threat, steps=10),
    }
    for name, restarts in runs.items():
        for restart in range(restarts):
            x_adv = x.clone()
            for rows in groups:
                attack = makers[name](L2(share * float(radii[rows].min())))
                with seed.streams(1, [str(int(r)) for r in rows], draw=restart, purpose=f"try {name}"):
                    x_adv[rows] = attack(classifier, x[rows], label[rows])
            delta = x_adv - x
            stretch = share * radii / L2(1.0).size(delta)  # infinite where a lucky draw at x was taken for a success
            yield (x + delta * stretch.view(-1, 1, 1, 1)).clamp(0, 1)


def within(got: Certified, split: Split) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """The images that have a radius, with label, radius and id."""
    kept = torch.from_numpy(got.labels >= 0)
    ids = tuple(i for i, keep in zip(split.ids, kept.tolist(), strict=True) if keep)
    return split.x[kept], torch.from_numpy(got.labels)[kept], torch.from_numpy(got.radii)[kept].float(), ids


def test_no_attack_succeeds_inside_a_radius_of_a_linear_model_and_beyond_the_distance_they_do() -> None:
    data, sigma = Facing(side=6, distances=(0.05, 0.1, 0.2, 0.4, 0.8), each=46), 0.25
    plane = Plane(data).load(DictStore())
    relaxed = Smoothing(sigma, m=8).relax(plane)
    split = data.split("evaluation")
    x, label, radii, _ = within(Certificates(Plane(data), data, sigma, n=500).load(DictStore()), split)
    runs = {"PGD": 6, "CW": 2, "DeepFool": 4}
    tries = succeeded = 0
    for x_adv in attacked(relaxed, x, label, radii, runs, share=0.999):
        tried = ~x_adv.isnan().flatten(1).any(1)
        tries += int(tried.sum())
        succeeded += int((plane(x_adv).argmax(1) != label)[tried].sum())  # the smoothed classifier, exactly
    assert tries >= 2000
    assert succeeded == 0, f"{succeeded} of {tries} tries"
    true = torch.from_numpy(data.distance()).float()
    for x_adv in attacked(relaxed, split.x, split.y, true, dict.fromkeys(runs, 1), share=1.02):
        fooled = (plane(x_adv).argmax(1) != split.y)[~x_adv.isnan().flatten(1).any(1)]
        assert fooled.float().mean() > 0.95, "the attacks must be strong enough to prove something"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_attack_succeeds_inside_a_radius_of_a_trained_network() -> None:
    data, sigma, store = Digits(), 0.25, DictStore()
    base = Trained(MLP(), data, Fit(loss=NoiseAugmented(sigma), epochs=20, optimiser="adamw", lr=0.003))
    got = Certificates(base, data, sigma, n=2000, stop=240).load(store)
    split = data.split("evaluation")[:240]
    assert certified_accuracy(split.y.numpy(), *got, 0.25).value > 0.6
    x, label, radii, ids = within(got, split)
    live = base.load(store)
    tries = succeeded = 0
    for i, x_adv in enumerate(attacked(Smoothing(sigma).relax(live), x, label, radii, {"PGD": 6, "CW": 2, "DeepFool": 3}, 0.999)):
        tried = ~x_adv.isnan().flatten(1).any(1)
        tries += int(tried.sum())
        succeeded += int((majority(live, x_adv, ids, sigma, 1000, f"judge {i}") != label)[tried].sum())
    assert tries >= 2000
    assert succeeded == 0, f"{succeeded} of {tries} tries"
    beyond = next(attacked(Smoothing(sigma).relax(live), x, label, 4 * radii, {"PGD": 1}, 0.999))
    assert (majority(live, beyond, ids, sigma, 1000, "beyond") != label).float().mean() > 0.5


def majority(live: nn.Module, x: Tensor, ids: tuple[str, ...], sigma: float, n: int, purpose: str) -> Tensor:
    """The label of most of n fresh draws."""
    votes = torch.zeros(len(x), 10)
    with torch.no_grad(), seed.streams(2, ids, purpose=purpose):
        for _ in range(n // 20):
            copies = x.repeat(20, 1, 1, 1)
            logits = live(copies + seed.normal(copies, sigma))
            votes += nn.functional.one_hot(logits.argmax(1), 10).view(20, len(x), 10).sum(0)
    return votes.argmax(1)


# ---------------------------------------------------------------- the command

STUDY = """
[data]
type = "Digits"
[threat]
type = "Linf"
eps = "16/255"
[architecture]
type = "MLP"
width = 32
[fit]
epochs = 6
optimiser = "adamw"
lr = 0.01
[sources.s]
seed = 1
[attacks.FGSM]
[models.noisy]
fit = { loss = { type = "NoiseAugmented", sigma = 0.2 } }
[targets.plain]
seed = 2
[targets.smoothed]
type = "Wrapped"
model = "noisy"
wrapper = { type = "Smoothing", sigma = 0.2, n = 20 }
[targets.inside]
type = "Wrapped"
model = "smoothed"
wrapper = { type = "BitDepth" }
[targets.bare]
type = "Wrapped"
model = "noisy"
wrapper = { type = "Smoothing", sigma = 0 }
"""


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """firedoor certify study.toml ... in this process: exit code, standard output, standard error."""
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    monkeypatch.setenv("FIREDOOR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["firedoor", "certify", str(tmp_path / "study.toml"), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def test_the_command_prints_a_table_and_the_same_as_json(call: Any, tmp_path: Path) -> None:
    few = ("smoothed", "--images", 25, "--n", 300)
    code, out, err = call(*few)
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    for words in ("certified L2 accuracy of 25 images, sigma 0.2", "Abstained on", "s per image", "reaches L2 0.50"):
        assert words in flat, out
    kept = sorted((tmp_path / "store").rglob("*.safetensors"))
    code, out, _ = call(*few, "--json", "--out", tmp_path / "out")
    assert code == 0
    found = json.loads(out)
    assert sorted((tmp_path / "store").rglob("*.safetensors")) == kept, "asked again, nothing is done again"
    assert json.loads((tmp_path / "out" / "certificates.json").read_text())["smoothed"] == found
    rates = [r["value"] for r in found["certified_accuracy"]]
    assert [r["times_sigma"] for r in found["certified_accuracy"]] == [0, 0.25, 0.5, 0.75, 1, 1.5]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.6
    assert rates[0] == sum(e["label"] == e["y"] for e in found["examples"]) / 25
    assert found["largest_radius"] == pytest.approx(0.2 * norm.ppf(0.001 ** (1 / 300)))
    assert found["abstained"]["value"] == sum(e["label"] == -1 for e in found["examples"]) / 25
    assert all((e["radius"] == 0) == (e["label"] == -1) for e in found["examples"])
    more = json.loads(call("smoothed", "--images", 30, "--n", 300, "--json")[1])
    assert more["examples"][:25] == found["examples"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("smothed",), ("no target 'smothed'", "Did you mean 'smoothed'?")),
        (("plain",), ("'plain' must be wrapped in Smoothing", "Targets with it: smoothed")),
        (("inside",), ("Smoothing outermost", "BitDepth")),
        (("bare",), ("sigma above 0",)),
        (("smoothed", "--n", "5"), ("n must be 10 or more",)),
        (("smoothed", "--images", "0"), ("--images must be 1 or more, got 0",)),
        (("smoothed", "--alpha", "2"), ("alpha must lie between 0 and 1",)),
    ],
)
def test_a_target_or_number_that_cannot_be_certified_is_one_message(
    call: Any, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    assert all(w in err for w in words), err
