"""Kill a run at any moment, run it again: the matrix has the same bytes as that of a run that nobody killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = (
    'name="tiny"',
    'sources={mlp={architecture={type="MLP"},fit={epochs=2}}}',
    'targets={plain={architecture={type="MLP"},seed=1,fit={epochs=2}}}',
    "attacks={FGSM={},MI_FGSM={steps=3}}",
    'white_box={PGD={steps=3,keep="best"}}',
    "seen=[]",
    "public=[]",
    "models={}",
    "data.splits={train=400,development=100,evaluation=60}",
)
SMALL = (
    'name="small"',
    "draws=2",
    'sources={cnn={architecture={type="SmallCNN",width=4},fit={epochs=3}},mlp={architecture={type="MLP"},fit={epochs=3}}}',
    'targets={plain={architecture={type="SmallCNN",width=4},seed=1,fit={epochs=3}},jpeg={type="Wrapped",model="plain",wrapper={type="JPEG"}},'
    'noise={type="Wrapped",model="plain",wrapper={type="Noise",n=2}}}',
    "attacks={SignNoise={},FGSM={},MI_FGSM={steps=3}}",
    'white_box={PGD={steps=3,keep="best"}}',
    "seen=[]",
    "public=[]",
    "models={}",
)


def start(study: tuple[str, ...], out: Path, store: Path) -> subprocess.Popen[bytes]:
    """`firedoor demo` in a process group of its own, workers included."""
    settings = [part for text in study for part in ("--set", text)]
    command = [sys.executable, "-m", "firedoor", "demo", "--out", str(out), "--store", str(store), "-q", *settings]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(study: tuple[str, ...], out: Path, store: Path) -> bytes:
    process = start(study, out, store)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors.decode()
    return (out / "matrix.nc").read_bytes()


def objects(store: Path) -> int:
    return sum(1 for _ in store.glob("objects/*/*/arrays.safetensors"))


def killed_and_run_again(study: tuple[str, ...], folder: Path, at: int, later: float, whole_group: bool) -> bytes:
    """Killed `later` seconds after the store holds `at` objects: the same moments of the work on a slow and on a fast machine."""
    process = start(study, folder / "out", folder / "store")
    while objects(folder / "store") < at and process.poll() is None:
        time.sleep(0.02)
    time.sleep(later)
    assert process.poll() is None, f"the run was over before it held {at} objects"
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()  # the workers must notice by themselves, and may still be writing when the next run starts
    process.communicate()
    return finish(study, folder / "out", folder / "store")


def kills(study: tuple[str, ...], folder: Path, count: int, seed: int) -> None:
    quiet = finish(study, folder / "quiet-out", folder / "quiet-store")
    whole = objects(folder / "quiet-store")
    chance = random.Random(seed)
    same = []
    for i in range(count):
        at, later = chance.randrange(whole), chance.uniform(0, 0.2)
        again = killed_and_run_again(study, folder / str(i), at, later, whole_group=i % 2 == 0)
        same.append(again == quiet)
        print(f"kill {i + 1} of {count} at {at} of {whole} objects: {'same bytes' if same[-1] else 'OTHER BYTES'}", flush=True)
        shutil.rmtree(folder / str(i))
    assert sum(same) == count, f"{sum(same)} of {count} matrices were equal"


@pytest.mark.timeout(600)
def test_tiny_study_survives_kills(tmp_path: Path) -> None:
    kills(TINY, tmp_path, count=1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_small_study_survives_kills(tmp_path: Path) -> None:
    kills(SMALL, tmp_path, count=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_demo_survives_ten_kills(tmp_path: Path) -> None:
    kills((), tmp_path, count=10, seed=2)
