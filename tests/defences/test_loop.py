"""A training that was killed at any step and went on equals one that nobody killed, bit for bit; and what several processes share."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from defence_fakes import DEFAULT, Toy
from torch import Tensor, nn

from firedoor import seed as seeds
from firedoor.architectures import MLP
from firedoor.attacks import PGD
from firedoor.data import Digits
from firedoor.data.splits import Splits
from firedoor.defences.averages import MovingAverage
from firedoor.defences.early_stopping import EarlyStopping
from firedoor.defences.fit import Fit
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.free import Free
from firedoor.errors import SetupError, SpecError
from firedoor.models.trained import Trained
from firedoor.protocols import Batch
from firedoor.store import FileStore
from firedoor.threat import Linf

DATA = Toy()
SPLIT = DATA.split("target")


class Killed(Exception):
    pass


def net() -> nn.Module:
    with seeds.forked(3, "weights"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3))


def trained(fit: Fit, store: FileStore, dies_after: int | None = None) -> tuple[list[dict[str, Tensor]], Any]:
    """Members, and the training; killed once after that many steps."""
    inputs: dict[str, object] = {"fit": "of this test"}

    def watch(done: int, steps: int) -> None:
        if done == dies_after:
            raise Killed

    work = store.unfinished("model", inputs)
    if dies_after is not None:
        with pytest.raises(Killed):
            fit.train(net(), SPLIT, store, 7, work, watch)
    training = fit.train(net(), SPLIT, store, 7, work)
    return training.members, training


RECIPES: dict[str, dict[str, Any]] = {
    "sgd, one cycle, dropout": {},
    "adamw, steps": {"optimiser": "adamw", "lr": 0.01, "schedule": "steps"},
    "averaged weights": {"average_from": 0.5},
    "moving average": {"ema": 0.9},
    "snapshots": {"schedule": "cosine-cycles", "cycles": 2},
    "parts of batches, replayed": {"accumulate": 2, "replays": 2},
    "shifted and flipped": {"augment": "shift-flip"},
    "kornia": {"augment": "trivial"},
    "guard of fast training": {"loss": Fast(DEFAULT)},
    "delta of free training": {"loss": Free(DEFAULT), "replays": 2},
    "bfloat16": {"precision": "bf16"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_goes_on_where_it_was_killed_to_the_same_bits(name: str, tmp_path: Path) -> None:
    fit = Fit(**{"epochs": 4, "batch_size": 16, "lr": 0.05, "checkpoint_seconds": 0, **RECIPES[name]})
    whole, calm = trained(fit, FileStore(tmp_path / "calm"))
    steps = 4 * 4
    for dies_after in (1, 7, steps - 1):
        again, training = trained(fit, FileStore(tmp_path / str(dies_after)), dies_after)
        for member, before in zip(again, whole, strict=True):
            assert all(torch.equal(member[k], before[k]) for k in before), f"killed after step {dies_after}"
        assert training.passes == calm.passes


def test_what_happened_is_in_events_and_no_checkpoint_is_left(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    trained(Fit(epochs=2, batch_size=16, lr=0.05, checkpoint_seconds=0), store, dies_after=5)
    (file,) = (tmp_path / "events").glob("*.jsonl")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "go on", "epoch", "end"]
    assert events[2]["step"] == 4, "the checkpoint after step 4 was the last one before the kill in step 5"
    assert not list(tmp_path.glob("objects/*/*/arrays.safetensors")), "the checkpoint is gone"


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    fit = Fit(epochs=2, batch_size=16, lr=0.05, checkpoint_seconds=0)
    whole, _ = trained(fit, FileStore(tmp_path / "calm"))
    store = FileStore(tmp_path / "hurt")
    work = store.unfinished("model", {"fit": "of this test"})

    def die(done: int, steps: int) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        fit.train(net(), SPLIT, store, 7, work, die)
    (file,) = (tmp_path / "hurt").glob("objects/*/*/arrays.safetensors")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    again = fit.train(net(), SPLIT, store, 7, work).members
    assert all(torch.equal(again[0][k], whole[0][k]) for k in whole[0])


def test_parts_of_a_batch_give_the_gradient_of_the_whole_one() -> None:
    def after(accumulate: int) -> Tensor:
        with seeds.forked(1, "weights"):
            linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
        fit = Fit(epochs=1, batch_size=60, lr=0.5, schedule="constant", momentum=0, accumulate=accumulate)
        split = replace(SPLIT, x=SPLIT.x.double())
        return fit.train(linear, split, None, 0).members[-1]["1.weight"]  # type: ignore[arg-type]

    assert torch.allclose(after(7), after(1), atol=1e-12), "parts of 9, 9, ... and 6 weigh by their size"


def test_replays_take_a_step_each() -> None:
    seen: list[tuple[str, ...]] = []

    class Note:
        def start(self, store: object, split: object) -> Callable[[nn.Module, Batch], Tensor]:
            def loss(module: nn.Module, batch: Batch) -> Tensor:
                seen.append(tuple(batch.ids))
                return module(batch.x).square().mean()

            return loss

    training = Fit(loss=Note(), epochs=1, batch_size=30, lr=0.01, replays=3).train(net(), SPLIT, None, 0)  # type: ignore[arg-type]
    assert seen == [seen[0]] * 3 + [seen[3]] * 3
    assert seen[0] != seen[3]
    assert training.passes == 3


def test_a_moving_average_is_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average, by_hand = MovingAverage(0.5), 0.0
    for k, value in enumerate((2.0, 4.0, -1.0, 3.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)):
        module.weight.data.fill_(value)
        average.add(module)
        keep = min(0.5, (1 + k) / (10 + k))
        by_hand = value if k == 0 else keep * by_hand + (1 - keep) * value
    assert float(average.state(module)["weight"]) == pytest.approx(by_hand, rel=1e-6)


def test_each_draw_of_an_augmentation_is_the_same_for_crafts_and_differs_by_epoch() -> None:
    from firedoor.defences.augmentation import augmentation

    x, ids = SPLIT.x[:8], list(SPLIT.ids[:8])
    for kind in ("shift", "shift-flip", "erase", "trivial", "rand"):
        first, again, later = (augmentation(kind, 1, ids, epoch)(x) for epoch in (0, 0, 1))
        assert torch.equal(first, again), kind
        assert not torch.equal(first, later), kind
        assert first.shape == x.shape
        assert torch.equal(first, first.clamp(0, 1))


def test_the_step_schedule_drops_twice() -> None:
    fit = Fit(schedule="steps", lr=0.1)
    assert [round(fit.rate(s, 8), 6) for s in range(8)] == [0.1] * 4 + [0.01] * 2 + [0.001] * 2


def test_early_stopping_gives_the_best_epoch_and_stops(tmp_path: Path) -> None:
    data = Digits(Splits(train=200, development=100, evaluation=20))
    source = Trained(MLP(), data, Fit(epochs=3, lr=0.05), seed=1)
    stopping = EarlyStopping((source,), PGD(Linf(20 / 255), steps=2), data, patience=2)
    store = FileStore(tmp_path)
    score = stopping.start(store)
    fit = Fit(epochs=12, batch_size=16, lr=0.3, early_stopping=stopping)
    module = MLP().build(data.shape, 10)
    training = fit.train(module, data.split("target"), store, 0)
    best = max(training.scores)
    module.load_state_dict(training.members[0])
    assert score(module) == best, "the weights of the best look come out"
    assert len(training.scores) - 1 - training.scores.index(best) <= 2, "no more than two looks without a better one"


def test_a_training_that_had_stopped_early_is_not_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be killed between its last look and its outcome; going on past the stop would give other weights."""
    data = Digits(Splits(train=200, development=100, evaluation=20))
    source = Trained(MLP(), data, Fit(epochs=3, lr=0.05), seed=1)
    stopping = EarlyStopping((source,), PGD(Linf(20 / 255), steps=2), data, patience=1)
    fit = Fit(epochs=12, batch_size=16, lr=0.3, early_stopping=stopping, checkpoint_seconds=0)
    store = FileStore(tmp_path)

    def run(name: str) -> Any:
        with seeds.forked(3, "weights"):
            module = MLP().build(data.shape, 10)
        return fit.train(module, data.split("target"), store, 0, store.unfinished("model", {"fit": name}))

    calm = run("calm")
    assert len(calm.scores) < 12, "it was to stop early"
    with monkeypatch.context() as patch:
        patch.setattr("firedoor.defences.loop.Loop.outcome", lambda loop: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("killed")
    again = run("killed")
    assert again.scores == calm.scores
    assert all(torch.equal(again.members[0][k], calm.members[0][k]) for k in calm.members[0])


def test_two_ways_to_choose_the_weights_are_refused() -> None:
    with pytest.raises(SpecError, match="only one of average_from, ema"):
        Fit(average_from=0.5, ema=0.9)


def test_what_is_carried_from_batch_to_batch_needs_whole_batches() -> None:
    with pytest.raises(SpecError, match="needs whole batches, got accumulate = 2"):
        Fit(loss=Free(DEFAULT), epochs=1, accumulate=2).train(net(), SPLIT, None, 0)  # type: ignore[arg-type]


def test_a_part_of_one_example_is_refused_where_its_statistics_are_needed() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    with pytest.raises(SpecError, match="need 2 examples, got 1: a batch of 4 comes in 4 parts on 1 processes"):
        Fit(epochs=1, batch_size=4, accumulate=4).train(module, SPLIT, None, 0)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.log_with")
@pytest.mark.parametrize("name", ["swanlab", "no such tracker"])
def test_a_tracker_that_is_not_there_is_refused_and_not_ignored(name: str) -> None:
    with pytest.raises(SetupError, match=f"training .*{name}.* [Ii]nstall"):
        Fit(epochs=1, trackers=(name,)).train(net(), SPLIT, None, 0)  # type: ignore[arg-type]


def test_a_precision_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(SetupError, match="fp16 needs an accelerator"):
        Fit(epochs=1, precision="fp16").train(net(), SPLIT, None, 0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- real processes

TRAIN = ("-m", "firedoor", "train", "digits", "pgd_at", "--set", "fit.epochs=3", "--set", "fit.checkpoint_seconds=0", "-q")


def weights(store: Path) -> dict[str, Tensor]:
    (file,) = store.glob("objects/*/*/arrays.safetensors")
    return safetensors.torch.load_file(file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_at_20_random_steps(tmp_path: Path) -> None:
    def start(store: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *TRAIN, "--store", str(store)], start_new_session=True)

    assert start(tmp_path / "calm").wait(600) == 0
    whole, chance, same = weights(tmp_path / "calm"), random.Random(5), 0
    for i in range(20):
        store, at = tmp_path / str(i), chance.uniform(0, 1)
        process = start(store)
        checkpoints = 0
        last = -1.0
        until = 1 + int(at * 20)  # checkpoints written before the kill
        while checkpoints < until and process.poll() is None:
            for file in store.glob("objects/*/*/arrays.safetensors"):
                changed = file.stat().st_mtime if file.exists() else last
                checkpoints, last = checkpoints + (changed != last), changed
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        assert process.poll() is None, "the training was over before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert start(store).wait(600) == 0
        again = weights(store)
        same += all(torch.equal(again[k], whole[k]) for k in whole)
    assert same == 20, f"{same} of 20 had equal bits"


def processes(count: int, what: str, folder: Path) -> list[dict[str, Tensor]]:
    """What each of so many processes ends with."""
    folder.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    script = Path(__file__).with_name("several_processes.py")
    assert subprocess.run([*launch, str(script), what, str(folder)], check=False).returncode == 0
    return [safetensors.torch.load_file(folder / f"rank{i}") for i in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    (one,), (first, second) = (processes(n, "plain", tmp_path / str(n)) for n in (1, 2))
    for name in one:
        assert torch.equal(first[name], second[name]), f"{name} differs between the two processes"
        assert torch.allclose(one[name], first[name], rtol=0, atol=1e-5), name
    assert not torch.equal(one["1.weight"], safetensors.torch.load_file(tmp_path / "1/start")["1.weight"])
    if Path("/proc/self/task").exists():  # a thread of the group that outlives Python aborts some processes, after the work
        assert "gloo" in (tmp_path / "2/training0").read_text()
        assert all("gloo" not in (tmp_path / f"2/threads{rank}").read_text() for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_agree_on_averages_and_on_a_batch_that_leaves_one_without_a_share(tmp_path: Path) -> None:
    first, *others = processes(3, "averaged", tmp_path / "3")
    assert len(others) == 2
    for other in others:
        for name in first:
            assert torch.equal(first[name], other[name]), f"{name} differs between processes"
