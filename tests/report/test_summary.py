"""Files of a run that someone has damaged: one message that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firedoor.errors import StoreError
from firedoor.report.summary import build
from reading_fakes import Draft, Target

WHOLE = {"symptoms": {"t": []}, "costs": {"t": {}}, "gallery": [], "provenance": {}}


def written(out: Path, **damaged: object) -> Path:
    """The files that a run leaves, some of them replaced."""
    draft = Draft(np.arange(20) % 10, [Target("t")])
    draft.fool("s", "a", "t", np.arange(20) < 5)
    draft.matrix().write(out / "matrix.nc")
    for name, content in {**WHOLE, **damaged}.items():
        (out / f"{name}.json").write_text(json.dumps(content))
    return out


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    assert [t["name"] for t in build(written(tmp_path))["targets"]] == ["t"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("symptoms", []),
        ("symptoms", {"t": [{"id": "A1"}]}),
        ("symptoms", {"t": 3}),
        ("costs", []),
        ("costs", {"t": 3}),
        ("gallery", {}),
        ("provenance", []),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: object) -> None:
    with pytest.raises(StoreError, match=rf"{name}\.json is damaged .*Run the study again"):
        build(written(tmp_path, **{name: content}))
