"""The training loop: what it counts, what it averages, what it leaves behind."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from defence_fakes import Ascent, DictStore, Net, Toy, each_epoch, net, same, weights
from torch import Tensor, nn

from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.mixed import Mixed
from firedoor.defences.losses.trades import TRADES
from firedoor.errors import DataError, ModelRefused, SpecError
from firedoor.protocols import Batch, LossFn, Split, Store
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")


@dataclass(frozen=True)
class Watch:
    """Plain training that writes down every batch."""

    seen: list[Batch]

    def start(self, store: Store, split: Split) -> LossFn:
        plain = CrossEntropy().start(store, split)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            self.seen.append(batch)
            return plain(module, batch)

        return loss


def test_learns_and_leaves_a_frozen_network_in_eval_mode() -> None:
    module = net(DATA)
    training = Fit(epochs=8, batch_size=16, lr=0.05).train(module, SPLIT, DictStore(), seed=0)
    assert (module(SPLIT.x).argmax(1) == SPLIT.y).float().mean() == 1
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())
    assert not module._forward_hooks
    assert len(training.members) == 1
    assert same(training.members[0], weights(module))
    assert training.seconds > 0


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_same_seed_same_bits_and_another_seed_other_bits(optimiser: str) -> None:
    fit = Fit(
        loss=Madry(Ascent(start=True)),
        epochs=2,
        batch_size=16,
        lr=0.01,
        optimiser=optimiser,
        augment="shift-flip",  # type: ignore[arg-type]
    )
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))  # the state outside must not matter
        module = net(DATA, dropout=0.3)
        before = torch.random.get_rng_state()
        fit.train(module, SPLIT, DictStore(), seed)
        assert torch.equal(before, torch.random.get_rng_state()), "training moved the global generator"
        runs.append(weights(module))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize(
    ("loss", "passes"),
    [
        (CrossEntropy(), 1),
        (Madry(Ascent(steps=10)), 11),
        (Madry(Ascent(steps=10), inner_mode="eval"), 11),
        (Mixed(Ascent(steps=3)), 5),
        (Mixed(Ascent(steps=3), alpha=1.0), 1),
        (TRADES(Linf(8 / 255), steps=4), 6),
    ],
)
def test_passes_are_counted_exactly(loss: object, passes: int) -> None:
    training = Fit(loss=loss, epochs=2, batch_size=16, lr=0.01).train(net(DATA), SPLIT, DictStore(), 0)  # type: ignore[arg-type]
    assert training.passes == passes


def test_a_last_batch_of_one_is_dropped_and_every_other_example_seen_once_per_epoch() -> None:
    seen: list[Batch] = []
    Fit(loss=Watch(seen), epochs=2, batch_size=59, lr=0.01).train(net(DATA), SPLIT, DictStore(), 0)
    assert [len(b.ids) for b in seen] == [59, 59]
    assert [b.epoch for b in seen] == [0, 1]
    assert list(seen[0].ids) != list(seen[1].ids)
    for batch in seen:
        assert len(set(batch.ids)) == 59
        rows = [SPLIT.ids.index(i) for i in batch.ids]
        assert torch.equal(batch.x, SPLIT.x[rows])
        assert torch.equal(batch.y, SPLIT.y[rows])


def test_average_is_the_mean_of_the_weights_and_buffers_passed_through() -> None:
    module, visited = net(DATA), []
    fit = Fit(epochs=8, batch_size=16, lr=0.05, schedule="constant", average_from=0.75)
    fit.train(module, SPLIT, DictStore(), 0, on_step=each_epoch(fit, lambda: visited.append(weights(module))))
    assert len(visited) == 8
    for name, value in weights(module).items():
        if value.is_floating_point():
            mean = torch.stack([w[name].double() for w in visited[5:]]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    assert not torch.equal(module.get_parameter("body.0.weight"), visited[-1]["body.0.weight"])


def test_cosine_cycles_give_one_snapshot_each_and_restart_the_rate() -> None:
    module, visited = net(DATA), []
    fit = Fit(epochs=6, batch_size=20, lr=0.05, schedule="cosine-cycles", cycles=3)
    training = fit.train(module, SPLIT, DictStore(), 0, on_step=each_epoch(fit, lambda: visited.append(weights(module))))
    assert len(training.members) == 3
    for member, at in zip(training.members, (1, 3, 5), strict=True):
        assert same(member, visited[at])
    rates = [fit.rate(step, 18) for step in range(18)]
    assert rates[0] == rates[6] == rates[12] == 0.05
    assert rates[5] < 0.1 * rates[0]
    assert rates[:6] == sorted(rates[:6], reverse=True)


def test_a_stored_image_gets_the_augmentation_of_its_example() -> None:
    seen: list[Batch] = []
    Fit(loss=Watch(seen), epochs=2, batch_size=16, lr=0.01, augment="shift-flip").train(net(DATA), SPLIT, DictStore(), 0)
    moved = 0
    by_epoch: list[dict[str, Tensor]] = [{}, {}]
    for batch in seen:
        rows = [SPLIT.ids.index(i) for i in batch.ids]
        assert torch.equal(batch.augment(SPLIT.x[rows]), batch.x)
        assert torch.equal(batch.augment(1 - SPLIT.x[rows])[batch.x > 0], 1 - batch.x[batch.x > 0])
        moved += int((batch.x != SPLIT.x[rows]).flatten(1).any(1).sum())
        by_epoch[batch.epoch].update(zip(batch.ids, batch.x, strict=True))
    assert moved > 0.8 * 120
    other = [not torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in SPLIT.ids]
    assert sum(other) > 0.8 * 60
    small: list[Batch] = []
    Fit(loss=Watch(small), epochs=1, batch_size=7, lr=0.01, augment="shift-flip").train(net(DATA), SPLIT, DictStore(), 0)
    for batch in small:
        for name, x in zip(batch.ids, batch.x, strict=True):
            assert torch.equal(x, by_epoch[0][name]), "the draw of an example depends on its batch"


def test_shift_moves_by_at_most_an_eighth_and_pads_with_zeros() -> None:
    seen: list[Batch] = []
    data = Toy(n=40, side=16)
    dot = torch.zeros(40, 1, 16, 16)
    dot[:, :, 8, 8] = 1
    Fit(loss=Watch(seen), epochs=1, batch_size=40, lr=0.01, augment="shift").train(net(data), data.split("target"), DictStore(), 0)
    places = seen[0].augment(dot).flatten(2).argmax(2)[:, 0]
    rows, columns = places // 16 - 8, places % 16 - 8
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_a_loss_that_is_not_finite_is_refused_with_epoch_and_rate() -> None:
    module = net(DATA)
    with pytest.raises(ModelRefused, match=r"epoch 1 at lr .*Lower lr"):
        Fit(epochs=1, batch_size=16, lr=1e30, schedule="constant").train(module, SPLIT, DictStore(), 0)
    assert not module.training
    assert not module._forward_hooks


def test_clipping_bounds_the_first_step() -> None:
    module = net(DATA)
    before = weights(module)
    Fit(epochs=1, batch_size=60, lr=1.0, schedule="constant", momentum=0, weight_decay=0, clip_gradient=0.01).train(
        module, SPLIT, DictStore(), 0
    )
    moved = sum(float((p.detach() - before[n]).square().sum()) for n, p in module.named_parameters()) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"cycles": 2},
        {"schedule": "cosine-cycles", "cycles": 3, "epochs": 20},
        {"average_from": 0.0},
        {"augment": "mirror"},
        {"optimiser": "adam"},
        {"clip_gradient": 0.0},
    ],
)
def test_wrong_fields_are_refused_at_the_door(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=r"Fit: .*, got "):
        Fit(**fields)  # type: ignore[arg-type]


def test_vectors_cannot_be_shifted_and_one_example_cannot_be_trained_on() -> None:
    flat = Split(SPLIT.x.flatten(1), SPLIT.y, SPLIT.ids)
    with pytest.raises(DataError, match="Use augment 'none'"):
        Fit(epochs=1, augment="shift").train(nn.Linear(64, 3), flat, DictStore(), 0)
    with pytest.raises(DataError, match="at least 2 examples, got 1"):
        Fit(epochs=1).train(nn.Linear(64, 3), flat[:1], DictStore(), 0)


def test_plain_training_is_gradient_descent() -> None:
    """One full batch, no momentum: w - lr grad, computed a second way."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.zero_()
    reference = copy.deepcopy(module)
    Fit(epochs=1, batch_size=60, lr=0.5, momentum=0, weight_decay=0, schedule="constant").train(module, SPLIT, DictStore(), 0)
    onehot = nn.functional.one_hot(SPLIT.y, 3).double()
    gradient = ((1 / 3 - onehot).T @ SPLIT.x.flatten(1).double()) / 60
    torch.testing.assert_close(module[1].weight.double(), reference[1].weight.double() - 0.5 * gradient, rtol=1e-5, atol=1e-7)


def test_the_rooms_find_their_entries_and_nothing_else() -> None:
    from firedoor import defences
    from firedoor.defences import broken, losses, wrappers

    assert defences.Fit is Fit
    assert losses.Madry is Madry
    assert "JPEG" in dir(wrappers)
    assert broken.Temperature(1.0).factor == 1
    for room in (defences, losses, wrappers, broken):
        with pytest.raises(AttributeError, match="Nonsense"):
            _ = room.Nonsense
    assert isinstance(net(DATA), Net)
