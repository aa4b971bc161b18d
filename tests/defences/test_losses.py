"""Reductions to plain training, known values, and what an inner attack must leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from defence_fakes import Ascent, DictStore, Fixed, Net, Toy, each_epoch, net, same, weights
from torch import Tensor, nn

from firedoor import seed, spec
from firedoor.craft import Craft
from firedoor.defences.fit import Fit, Remembering, Watching
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.ensemble_at import EnsembleAT
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.guided_denoising import GuidedDenoising
from firedoor.defences.losses.inner import craft_inner
from firedoor.defences.losses.label_smoothing import LabelSmoothing
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.mixed import Mixed
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.trades import TRADES
from firedoor.defences.losses.weight_penalty import WeightPenalty
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Access, Batch, Model, Split, Store
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")
ATTACK = Ascent()
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))


def trained(loss: Any, dropout: float = 0.2) -> dict[str, Tensor]:
    module = net(DATA, dropout)
    Fit(loss=loss, epochs=2, batch_size=16, lr=0.02, augment="shift").train(module, SPLIT, DictStore(), 0)
    return weights(module)


def a_batch(n: int = 12, epoch: int = 0) -> Batch:
    return Batch(SPLIT.x[:n], SPLIT.y[:n], SPLIT.ids[:n], epoch)


def whole() -> Batch:
    return Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0)


@dataclass(frozen=True)
class UniformNoise:
    """Plain training on uniform points of the ball."""

    threat: Linf

    def start(self, store: Store, split: Split) -> Any:
        return lambda module, batch: nn.functional.cross_entropy(module(self.threat.start(batch.x)), batch.y)


REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "Mixed(alpha=1) = plain": (Mixed(ATTACK, alpha=1.0), CrossEntropy()),
    "Mixed(alpha=0) = Madry": (Mixed(ATTACK, alpha=0.0), Madry(ATTACK)),
    "Madry with eps 0 = plain": (Madry(Ascent(Linf(0.0), steps=3)), CrossEntropy()),
    "Madry with eps 0 in eval mode = plain": (Madry(Ascent(Linf(0.0)), inner_mode="eval"), CrossEntropy()),
    "TRADES(beta=0) = plain": (TRADES(Linf(8 / 255), beta=0.0), CrossEntropy()),
    "PubDef without sources = plain": (PubDef((), ATTACK, DATA), CrossEntropy()),
    "PubDef without sources, all = plain": (PubDef((), ATTACK, DATA, mode="all"), CrossEntropy()),
    "PubDef without sources, moving average = plain": (PubDef((), ATTACK, DATA, mode="moving-average"), CrossEntropy()),
    "WeightPenalty(0, 0) = plain": (WeightPenalty(0.0, 0.0), CrossEntropy()),
    "LabelSmoothing(0) = plain": (LabelSmoothing(0.0), CrossEntropy()),
    "CrossEntropy at 1 = plain": (CrossEntropy(1.0), CrossEntropy()),
    "Fast with eps 0 = plain": (Fast(Linf(0.0)), CrossEntropy()),
    "Fast with a guard that sees nothing = Fast without": (Fast(Linf(8 / 255)), Fast(Linf(8 / 255), guard=False)),
    "EnsembleAT without sources = Mixed": (EnsembleAT((), ATTACK, DATA), Mixed(ATTACK)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str) -> None:
    special, general = (trained(loss) for loss in REDUCTIONS[name])
    if name.startswith("EnsembleAT"):  # one mean of two halves against two means: equal up to rounding
        for k in general:
            torch.testing.assert_close(special[k], general[k], rtol=1e-3, atol=1e-4)
    else:
        assert same(special, general), name


def test_fast_without_a_step_trains_on_uniform_noise() -> None:
    special, general = trained(Fast(Linf(16 / 255), step=0.0)), trained(UniformNoise(Linf(16 / 255)))
    for k in general:  # our cross-entropy and torch's are equal up to rounding
        torch.testing.assert_close(special[k], general[k], rtol=1e-3, atol=1e-4)
    assert not same(special, trained(CrossEntropy()))


def test_the_reductions_are_not_vacuous() -> None:
    plain = trained(CrossEntropy())
    others = [Madry(ATTACK), Mixed(ATTACK), TRADES(Linf(8 / 255)), PubDef(SOURCES, ATTACK, DATA), WeightPenalty(), LabelSmoothing()]
    others.append(Fast(Linf(8 / 255)))
    for loss in others:
        assert not same(plain, trained(loss)), loss


# ------------------------------------------------------------------ inner attacks


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("fails", [False, True])
def test_an_inner_attack_leaves_the_network_as_it_was(mode: Any, fails: bool) -> None:
    module = net(DATA, 0.2)
    module.train()
    module.body[4].eval()  # type: ignore[index,union-attr]
    module.body[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    before, modes = weights(module), [m.training for m in module.modules()]
    flags, state = [p.requires_grad for p in module.parameters()], torch.random.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="the attack broke"):
            craft_inner(Ascent(fails=True), module, a_batch(), mode)
    else:
        x_adv = craft_inner(ATTACK, module, a_batch(), mode)
        assert not x_adv.requires_grad
        assert not torch.equal(x_adv, SPLIT.x[:12])
    assert same(before, weights(module)), "weights or buffers changed"
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@dataclass(frozen=True)
class Spy(Ascent):
    modes: list[bool] = field(default_factory=list)
    module: Any = None

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        assert not isinstance(model, nn.Module)
        assert not any(p.requires_grad for p in self.module.parameters())
        self.modes.append(self.module.training)
        return super().__call__(model, x, y)


@pytest.mark.parametrize(("mode", "training"), [("train", True), ("eval", False)])
def test_inner_mode_is_the_mode_of_the_network_under_attack(mode: Any, training: bool) -> None:
    module = net(DATA).train()
    spy = Spy(module=module)
    loss = Madry(spy, inner_mode=mode).start(DictStore(), SPLIT)
    loss(module, a_batch()).backward()  # type: ignore[no-untyped-call]
    assert spy.modes == [training]
    assert module.training
    assert all(p.grad is not None for p in module.parameters())


def test_madry_trains_on_the_attack_of_the_very_network() -> None:
    module = net(DATA).train()
    value = Madry(ATTACK).start(DictStore(), SPLIT)(module, a_batch())
    x = SPLIT.x[:12].clone().requires_grad_(True)
    twin = net(DATA).train()
    nn.functional.cross_entropy(twin(x), SPLIT.y[:12], reduction="sum").backward()  # type: ignore[no-untyped-call]
    by_hand = (x.detach() + 16 / 255 * x.grad.sign()).clamp(0, 1)  # type: ignore[union-attr]
    wanted = nn.functional.cross_entropy(net(DATA).train()(by_hand), SPLIT.y[:12])
    torch.testing.assert_close(value, wanted)
    plain = nn.functional.cross_entropy(net(DATA).train()(SPLIT.x[:12]), SPLIT.y[:12])
    assert value > plain + 0.05


def test_normalisation_of_mixed_sees_both_halves_once() -> None:
    module = net(DATA).train()
    Mixed(ATTACK).start(DictStore(), SPLIT)(module, a_batch())
    x_adv = craft_inner(ATTACK, net(DATA).train(), a_batch(), "train")
    twin = net(DATA).train()
    twin(torch.cat([SPLIT.x[:12], x_adv]))
    assert same(
        {k: v for k, v in weights(module).items() if "running" in k}, {k: v for k, v in weights(twin).items() if "running" in k}
    )


def test_targeted_inner_attacks_are_refused() -> None:
    targeted = Ascent(Linf(0.1, targeted=True))
    for make in (
        lambda: Madry(targeted),
        lambda: Mixed(targeted),
        lambda: EnsembleAT((), targeted, DATA),
        lambda: PubDef((), targeted, DATA),
        lambda: TRADES(Linf(0.1, targeted=True)),
        lambda: Fast(Linf(0.1, targeted=True)),
        lambda: GuidedDenoising(Fixed(DATA), SOURCES, targeted, DATA),
    ):
        with pytest.raises(SpecError, match="untargeted, got targeted=True"):
            make()


# ------------------------------------------------------------------ stored crafts


class Catch(nn.Module):
    """Remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return x.flatten(1)[:, :3] * self.scale


def test_pubdef_finds_crafts_by_id_after_shuffling() -> None:
    store, module = DictStore(), Catch()
    loss = PubDef(SOURCES, ATTACK, DATA, mode="all").start(store, SPLIT)
    order = torch.from_numpy(seed.order(60, 3))[:20]
    ids = [SPLIT.ids[int(i)] for i in order]
    flip = lambda x: x.flip(3)  # noqa: E731
    with seed.streams(0, ids):
        loss(module, Batch(flip(SPLIT.x[order]), SPLIT.y[order], ids, 0, flip))
    clean, *crafts = module.shown[0].chunk(3)
    assert torch.equal(clean, SPLIT.x[order].flip(3))
    for source, x_adv in zip(SOURCES, crafts, strict=True):
        alone = Craft(source=source, attack=ATTACK, data=DATA, part="target", seed=0).load(store)
        assert torch.equal(x_adv, alone.x[order].flip(3))
    assert store.made == ["craft", "craft"], "crafts must be shared with whoever asks for the same ones"


def test_pubdef_random_draws_clean_and_every_source_equally_per_example() -> None:
    store = DictStore()
    loss = PubDef(SOURCES, ATTACK, DATA).start(store, SPLIT)
    views = [SPLIT.x, *(Craft(s, ATTACK, DATA, "target").load(store).x for s in SOURCES)]
    counts = torch.zeros(3)
    picked = []
    for epoch in range(30):
        module = Catch()
        with seed.streams(0, SPLIT.ids, draw=epoch):
            loss(module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, epoch))
        (shown,) = module.shown
        which = torch.stack([(shown == v).flatten(1).all(1) for v in views]).float()
        assert torch.equal(which.sum(0), torch.ones(60)), "each image is exactly one of the views of its own example"
        counts += which.sum(1)
        picked.append(which.argmax(0))
    assert (counts / 1800 - 1 / 3).abs().max() < 4 * (2 / 9 / 1800) ** 0.5
    assert not torch.equal(picked[0], picked[1])


def views_of_pubdef(module: nn.Module) -> Tensor:
    """Cross-entropies (1 + sources, 60): clean, then each source's crafts."""
    views = [SPLIT.x, *(Craft(s, ATTACK, DATA, "target").load(DictStore()).x for s in SOURCES)]
    return torch.stack([nn.functional.cross_entropy(module(v), SPLIT.y, reduction="none") for v in views])


@pytest.mark.parametrize("k", [1, 2])
def test_pubdef_top_k_takes_clean_and_the_hardest_sources_of_each_example(k: int) -> None:
    module = net(DATA, 0.0).eval()
    each = views_of_pubdef(module).detach()
    hardest = each[1:].sort(0, descending=True).values[:k].sum(0)
    found = PubDef(SOURCES, ATTACK, DATA, mode="top-k", k=k).start(DictStore(), SPLIT)(module, whole()).detach()
    torch.testing.assert_close(found, ((each[0] + hardest) / (1 + k)).mean())
    if k == len(SOURCES):
        equal = PubDef(SOURCES, ATTACK, DATA, mode="all").start(DictStore(), SPLIT)(module, whole()).detach()
        torch.testing.assert_close(found, equal)
    else:
        assert abs(float(found - each.mean())) > 1e-4


def test_pubdef_moving_average_weighs_sources_by_their_mean_loss_so_far() -> None:
    one, other = net(DATA, 0.0).eval(), Catch()
    loss = PubDef(SOURCES, ATTACK, DATA, mode="moving-average", decay=0.75).start(DictStore(), SPLIT)
    average = torch.full((2,), 0.5)
    for module in (one, other, one):
        means = views_of_pubdef(module).mean(1).detach()
        average = 0.75 * average + 0.25 * means[1:]
        expected = means[0] / 3 + 2 / 3 * (average / average.sum() * means[1:]).sum()
        torch.testing.assert_close(loss(module, whole()).detach(), expected)
    assert float((average[0] - average[1]).abs()) > 1e-3, "equal weights would prove nothing"
    assert isinstance(loss, Remembering)
    again = PubDef(SOURCES, ATTACK, DATA, mode="moving-average", decay=0.75).start(DictStore(), SPLIT)
    assert not torch.equal(loss(one, whole()), again(one, whole()))
    again.restore(loss.state())  # type: ignore[attr-defined]
    assert torch.equal(loss(one, whole()), again(one, whole()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fixed"}, "mode must be one of all, random, top-k, moving-average, got 'fixed'"),
        ({"mode": "top-k", "k": 3}, r"k must be 1 to the number of sources \(2\), got 3"),
        ({"mode": "moving-average", "decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_pubdef_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PubDef(SOURCES, ATTACK, DATA, **fields)


def test_pubdef_draws_among_its_stored_versions() -> None:
    store, attack = DictStore(), Ascent(start=True)
    loss = PubDef(SOURCES[:1], attack, DATA, mode="all", crafts=2).start(store, SPLIT)
    versions = [Craft(SOURCES[0], attack, DATA, "target", seed=k).load(store).x for k in (0, 1)]
    assert not torch.equal(*versions)
    module = Catch()
    with seed.streams(0, SPLIT.ids):
        loss(module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0))
    shown = module.shown[0][60:]
    is_first = (shown == versions[0]).flatten(1).all(1)
    is_second = (shown == versions[1]).flatten(1).all(1)
    assert bool((is_first | is_second).all())
    assert 15 < int(is_first.sum()) < 45


def test_crafts_must_cover_the_training_examples() -> None:
    for loss in (
        PubDef(SOURCES, ATTACK, DATA),
        EnsembleAT(SOURCES, ATTACK, DATA),
        GuidedDenoising(Fixed(DATA), SOURCES, ATTACK, DATA),
    ):
        with pytest.raises(DataError, match=r"60 of 60 \(first: 'source-0'\) are not in part 'target'"):
            loss.start(DictStore(), DATA.split("source"))
        replace(loss, part="source").start(DictStore(), DATA.split("source"))
        with pytest.raises(SpecError, match="Evaluation"):
            replace(loss, part="evaluation")  # type: ignore[arg-type]


def test_ensemble_at_shows_clean_beside_its_own_and_the_static_examples() -> None:
    store, module = DictStore(), net(DATA).eval()
    loss = EnsembleAT(SOURCES, ATTACK, DATA, inner=Ascent(Linf(8 / 255)), inner_mode="eval").start(store, SPLIT)
    own = craft_inner(Ascent(Linf(8 / 255)), module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0), "eval")
    views = [own, *(Craft(s, ATTACK, DATA, "target").load(store).x for s in SOURCES)]
    shown: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    with seed.streams(0, SPLIT.ids):
        value = loss(module, Batch(SPLIT.x, SPLIT.y, SPLIT.ids, 0))
    hook.remove()
    clean, x_adv = shown[-1].chunk(2)
    assert torch.equal(clean, SPLIT.x)
    which = torch.stack([(x_adv == v).flatten(1).all(1) for v in views])
    assert bool(which.any(0).all())
    assert int(which.sum(1).min()) > 8
    halves = [nn.functional.cross_entropy(module(x), SPLIT.y) for x in (clean, x_adv)]
    torch.testing.assert_close(value, 0.5 * halves[0] + 0.5 * halves[1])


# ------------------------------------------------------------------ known values


@dataclass(frozen=True)
class Labels:
    """A teacher that knows: huge logits at the true label, from the brightest third."""

    access = Access.GRADIENTS
    stochastic = False

    def load(self, store: Store) -> Any:
        def tell(x: Tensor) -> Tensor:
            thirds = torch.stack([x[:, :, 2 * k : 2 * k + 2].mean((1, 2, 3)) for k in range(3)], 1)
            return 1000 * nn.functional.one_hot(thirds.argmax(1), 3).float()

        return tell

    def relax(self) -> Model:
        return self


def test_distilling_at_1_from_the_labels_is_plain_training() -> None:
    module = net(DATA).eval()
    value = Distillation(Labels()).start(DictStore(), SPLIT)(module, a_batch())
    torch.testing.assert_close(value, nn.functional.cross_entropy(module(SPLIT.x[:12]), SPLIT.y[:12]))


def test_distillation_is_the_soft_cross_entropy_without_gradient_to_the_teacher() -> None:
    module, teacher = net(DATA).eval(), Fixed(DATA)
    value = Distillation(teacher, temperature=4.0).start(DictStore(), SPLIT)(module, a_batch())
    z, t = module(SPLIT.x[:12]).detach().double() / 4, teacher.load(DictStore())(SPLIT.x[:12]).double() / 4
    by_hand = 0.0
    for row in range(12):
        p, q = t[row].exp() / t[row].exp().sum(), z[row].exp() / z[row].exp().sum()
        by_hand -= float((p * q.log()).sum()) / 12
    assert float(value.detach()) == pytest.approx(by_hand, rel=1e-5)


def test_weight_penalty_adds_norms_of_matrices_only() -> None:
    module = net(DATA).eval()
    batch = a_batch()
    plain = CrossEntropy().start(DictStore(), SPLIT)(module, batch)
    value = WeightPenalty(l1=0.01, l2=0.1).start(DictStore(), SPLIT)(module, batch)
    matrices = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    wanted = plain + sum(0.01 * w.abs().sum() + 0.1 * (w * w).sum() for w in matrices)
    torch.testing.assert_close(value, wanted)


def test_label_smoothing_and_temperature_follow_their_formulas() -> None:
    module = net(DATA).eval()
    z = module(SPLIT.x[:12]).log_softmax(1)
    target = 0.8 * nn.functional.one_hot(SPLIT.y[:12], 3) + 0.2 / 3
    torch.testing.assert_close(LabelSmoothing(0.2).start(DictStore(), SPLIT)(module, a_batch()), -(target * z).sum(1).mean())
    hot = nn.functional.cross_entropy(module(SPLIT.x[:12]) / 40, SPLIT.y[:12])
    torch.testing.assert_close(CrossEntropy(40.0).start(DictStore(), SPLIT)(module, a_batch()), hot)


def test_trades_is_cross_entropy_plus_beta_kl_at_a_point_inside_the_threat() -> None:
    module = net(DATA).eval()
    loss = TRADES(Linf(8 / 255), beta=3.0, steps=3)
    shown: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    with seed.streams(0, SPLIT.ids[:12]):
        value = loss.start(DictStore(), SPLIT)(module, a_batch())
    hook.remove()
    x_adv = shown[-1]
    Linf(8 / 255).check(x_adv, SPLIT.x[:12])
    p, q = module(SPLIT.x[:12]).softmax(1), module(x_adv).softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    wanted = nn.functional.cross_entropy(module(SPLIT.x[:12]), SPLIT.y[:12]) + 3 * divergence.mean()
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)
    with seed.streams(1, SPLIT.ids[:12]):
        noise = (SPLIT.x[:12] + 8 / 255 * seed.normal(SPLIT.x[:12]).sign()).clamp(0, 1)
    by_noise = (p * (p / module(noise).softmax(1)).log()).sum(1).mean()
    assert divergence.mean() > 2 * by_noise


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_fast_trains_on_one_step_from_a_uniform_point(mode: Any) -> None:
    eps, step, twelve = 16 / 255, 1.25, SPLIT.ids[:12]
    with seed.streams(0, twelve):
        value = Fast(Linf(eps), step=step, inner_mode=mode).start(DictStore(), SPLIT)(net(DATA).train(), a_batch())
    x, y = SPLIT.x[:12], SPLIT.y[:12]
    with seed.streams(0, twelve):
        u = (x + seed.uniform(x, -eps, eps)).clamp(0, 1).requires_grad_(True)
    twin = net(DATA).train(mode == "train")
    nn.functional.cross_entropy(twin(u), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    moved = u.detach() + step * eps * u.grad.sign()  # type: ignore[union-attr]
    by_hand = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    inside = (by_hand - x).abs() < eps - 1e-6
    assert 0.05 < float(inside.float().mean()) < 0.95, "a step of 1.25 ends on the wall for most pixels and not for all"
    torch.testing.assert_close(value, nn.functional.cross_entropy(net(DATA).train()(by_hand), y))


# ------------------------------------------------------------------ the guard of Fast


def state(module: nn.Module) -> list[Tensor]:
    """Weights and buffers, those that are not saved included."""
    return [t.detach().clone() for t in (*module.parameters(), *module.buffers())]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(i, j) for i, j in zip(a, b, strict=True))


def learned(unsaved: bool = False) -> nn.Module:
    module = net(DATA, 0.2)
    Fit(epochs=8, batch_size=16, lr=0.05).train(module, SPLIT, DictStore(), 0)
    if unsaved:
        module.register_buffer("count", torch.zeros(3), persistent=False)
    return module.train().requires_grad_(True)


def watching(split: Split = SPLIT) -> Watching:
    live = Fast(Linf(8 / 255)).start(DictStore(), split)
    assert isinstance(live, Watching)
    return live


def test_the_guard_puts_back_the_weights_and_buffers_of_the_best_epoch() -> None:
    module, guard = learned(unsaved=True), watching()
    assert not guard.epoch_end(module, 0)
    best = state(module)
    with torch.no_grad():
        module.body[5].weight.mul_(1.01)  # type: ignore[index,union-attr,operator]
    assert not guard.epoch_end(module, 1), "no worse: training goes on, with the weights as they are"
    assert not equal(state(module), best)
    with torch.no_grad():
        for t in (*module.parameters(), *module.buffers()):
            t.zero_()
    modes = [m.training for m in module.modules()]
    assert guard.epoch_end(module, 2), "a dead network was not noticed"
    assert equal(state(module), best), "weights or buffers are not those of the best epoch"
    assert [m.training for m in module.modules()] == modes


def test_a_guard_without_anything_worth_keeping_never_stops() -> None:
    """A constant answer is right on a third of three classes under any attack, and that is no robustness to go back to."""
    module, guard = learned(), watching()
    good = state(module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert not guard.epoch_end(module, 0)
    with torch.no_grad():
        for now, before in zip((*module.parameters(), *module.buffers()), good, strict=True):
            now.copy_(before)
        module.body[7].weight.neg_()  # type: ignore[index,union-attr,operator]
        module.body[7].bias.neg_()  # type: ignore[index,union-attr,operator]
    wrong = state(module)
    assert not guard.epoch_end(module, 1), "it was never better than a constant answer"
    assert equal(state(module), wrong)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_guard_whose_look_fails_leaves_the_network_as_it_was(at: int) -> None:
    module, guard = learned(unsaved=True), watching()
    assert not guard.epoch_end(module, 0)
    before, modes, random = state(module), [m.training for m in module.modules()], torch.random.get_rng_state()
    flags, calls = [p.requires_grad for p in module.parameters()], []

    def fail(m: nn.Module, inputs: Any) -> None:
        m.get_buffer("count").add_(1)  # a network that counts its calls
        calls.append(0)
        if len(calls) > at:
            raise RuntimeError("the network broke")

    hook = module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the network broke"):
        guard.epoch_end(module, 1)
    hook.remove()
    assert len(calls) == at + 1
    assert equal(state(module), before), "weights or buffers changed"
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == flags
    assert torch.equal(random, torch.random.get_rng_state())


@dataclass(frozen=True)
class Collapse:
    """Fast with its guard, that gets the labels wrong from one epoch on: the network unlearns everything."""

    epoch: int
    seen: list[Any] = field(default_factory=list)

    def start(self, store: Store, split: Split) -> Any:
        inner, seen, at = watching(split), self.seen, self.epoch

        class Live:
            def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
                return inner(module, batch._replace(y=(batch.y + 1) % 3) if batch.epoch >= at else batch)

            def epoch_end(self, module: nn.Module, epoch: int) -> bool:
                done = inner.epoch_end(module, epoch)
                seen.append(done)
                return done

        return Live()


@pytest.mark.parametrize(
    "more",
    [{}, {"average_from": 0.9}, {"schedule": "cosine-cycles", "cycles": 3}, {"ema": 0.9}, {"average_from": 0.25}],
    ids=["plain", "average to come", "cycles", "moving average", "average begun"],
)
def test_a_collapse_ends_the_training_with_the_best_weights(more: dict[str, Any]) -> None:
    loss, after, module = Collapse(4), [], net(DATA)
    fit = Fit(loss=loss, epochs=12, batch_size=16, lr=0.05, **more)
    training = fit.train(module, SPLIT, DictStore(), 0, on_step=each_epoch(fit, lambda: after.append(weights(module))))
    assert loss.seen[-1], "the guard did not stop it"
    assert not any(loss.seen[:-1])
    assert 5 <= len(loss.seen) < 12, loss.seen
    assert len(after) == len(loss.seen) - 1, "an epoch that was undone is not reported as done"
    assert len(training.members) == more.get("cycles", 1)
    assert same(training.members[-1], weights(module))
    if more.get("average_from") != 0.25:
        assert any(same(weights(module), w) for w in after[:5]), "these are the weights of no epoch"
    assert (module(SPLIT.x).argmax(1) == SPLIT.y).float().mean() > 0.9
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    per_epoch = 2 + 10  # two of training, ten of the guard, which here looks at all sixty examples
    assert training.passes == pytest.approx(per_epoch * len(loss.seen) / 12), "passes times epochs is what was spent"


def test_fast_costs_two_passes_and_its_guard_ten_of_what_it_looks_at() -> None:
    large = Toy(n=300)
    for data, guard, passes in ((DATA, False, 2), (DATA, True, 12), (large, True, 2 + 10 * 128 / 300)):
        loss = Fast(Linf(8 / 255), guard=guard)
        training = Fit(loss=loss, epochs=2, batch_size=20, lr=0.01).train(net(data), data.split("target"), DictStore(), 0)
        assert training.passes == pytest.approx(passes)


@pytest.mark.parametrize("fields", [{"step": -1.0}, {"step": float("nan")}, {"inner_mode": "test"}])
def test_wrong_fields_of_fast_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"Fast: (step|inner_mode) must be .*, got"):
        Fast(Linf(0.1), **fields)


def test_guided_denoising_compares_what_the_victim_sees() -> None:
    victim = Fixed(DATA).load(DictStore())

    class Darker(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.9 * x

    loss = GuidedDenoising(Fixed(DATA), (Fixed(DATA),), Ascent(Linf(0.0)), DATA).start(DictStore(), SPLIT)
    with seed.streams(0, SPLIT.ids[:12]):
        assert float(loss(nn.Identity(), a_batch())) == 0
        value = loss(Darker(), a_batch())
    gaps = (victim(0.9 * SPLIT.x[:12]) - victim(SPLIT.x[:12])).abs()
    torch.testing.assert_close(value, gaps.sum() / 12)


def test_adversarial_training_leaves_the_features_that_the_attack_can_flip() -> None:
    """One strong feature that is right 9 times in 10, forty weak ones that are right together. Robust accuracy in closed form."""
    n, eps = 400, 0.06
    ids = tuple(map(str, range(n)))
    y = torch.arange(n) % 2
    sign = (2 * y - 1).float()[:, None]
    with seed.streams(0, ids):
        strong = 0.5 + 0.3 * sign * torch.where(seed.uniform(sign, 0, 1) < 0.1, -1.0, 1.0)
        weak = 0.5 + 0.03 * sign + seed.normal(sign.expand(n, 40), 0.05)
    split = Split(torch.cat([strong, weak], 1).clamp(0, 1), y, ids)
    clean, robust = {}, {}
    for name, loss in {"plain": CrossEntropy(), "madry": Madry(Ascent(Linf(eps)))}.items():
        module = nn.Linear(41, 2)
        with torch.no_grad():
            module.weight.zero_()
            module.bias.zero_()
        Fit(loss=loss, epochs=60, batch_size=50, lr=5.0, weight_decay=0).train(module, split, DictStore(), 0)
        w, b = module.weight[1] - module.weight[0], module.bias[1] - module.bias[0]
        margin = sign[:, 0] * (split.x @ w + b)
        clean[name] = float((margin > 0).float().mean())
        robust[name] = float((margin - eps * w.abs().sum() > 0).float().mean())  # no box: every x is inside by more than eps
    assert clean["plain"] > 0.97, (clean, robust)
    assert robust["plain"] < 0.2, (clean, robust)
    assert robust["madry"] > 0.8, (clean, robust)


def test_losses_can_be_written_in_a_study_file() -> None:
    """Fields are read by type, `data` comes from the study, and the recipe goes to plain values."""
    loss = spec.build(TRADES, {"threat": {"type": "Linf", "eps": "8/255"}, "beta": 2}, "loss", {}, {})
    assert loss == TRADES(Linf(8 / 255), beta=2.0)
    names = {"twin": Fixed(DATA)}
    from_study = spec.build(
        GuidedDenoising, {"victim": "twin", "sources": ["twin"]}, "loss", {"data": DATA, "attack": ATTACK}, names
    )
    assert from_study == GuidedDenoising(Fixed(DATA), (Fixed(DATA),), ATTACK, DATA)
    assert spec.to_dict(PubDef((), ATTACK, DATA))["attack"]["steps"] == 1
    assert isinstance(net(DATA), Net)
    assert isinstance(SPLIT, Split)
