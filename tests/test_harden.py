"""`firedoor train`: one network of a study, found again the next time, refused by name where it has no training of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firedoor.cli import app
from firedoor.errors import SpecError
from firedoor.harden import train
from firedoor.store import FileStore
from firedoor.study import Study, from_table

STUDY = """
[data]
type = "Digits"
splits = { train = 200, evaluation = 20 }
[threat]
type = "Linf"
eps = "40/255"
[architecture]
type = "MLP"
width = 16
[fit]
epochs = 2
lr = 0.05
[sources.other]
seed = 5
[attacks.FGSM]
[targets.plain]
[targets.jpeg]
type = "Wrapped"
model = "plain"
wrapper = { type = "JPEG" }
"""


@pytest.fixture
def study() -> Study:
    import tomllib

    return from_table(tomllib.loads(STUDY))


def test_it_trains_once_and_counts_steps(study: Study, tmp_path: Path) -> None:
    store, seen = FileStore(tmp_path), []
    first = train(study, "plain", store, lambda what, done, total: seen.append((what, done, total)))
    assert first["trained"] == "now"
    assert seen == [("training plain", k, 4) for k in (1, 2, 3, 4)], "two batches of 128 in each of two epochs"
    events = [json.loads(line)["event"] for line in Path(first["events"]).read_text().splitlines()]
    assert events == ["start", "epoch", "epoch", "end"]
    again = train(study, "plain", store)
    assert (again["trained"], again["seconds"]) == ("before", first["seconds"])


@pytest.mark.parametrize(
    ("name", "said"), [("plane", "Did you mean 'plain'"), ("jpeg", "got 'jpeg', a Wrapped. Name the network under it")]
)
def test_what_cannot_be_trained_is_refused_by_name(name: str, said: str, study: Study, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        train(study, name, FileStore(tmp_path))


def test_the_command_says_where_the_events_are(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    done = CliRunner().invoke(app, ["train", str(file), "other", "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert "other was trained now" in done.output
    plain = CliRunner().invoke(app, ["train", str(file), "other", "--store", str(tmp_path / "store"), "--json"])
    assert json.loads(plain.output)["trained"] == "before"
