"""The examples run, and say what the report says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
TABLE = EXAMPLES / "table.py"
GATE = """
name = "gate"
seen = ["public"]
[data]
type = "Digits"
[threat]
type = "Linf"
eps = 0.1
[architecture]
type = "MLP"
[fit]
epochs = 1
[sources.public]
seed = 1
[attacks.FGSM]
[targets.undefended]
seed = 2
[targets.gate]
type = "Wrapped"
model = "undefended"
wrapper = { type = "Gate", hardened = "public", alarm = "alarm" }
[models.alarm]
seed = 3
"""


def example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLES / name), *words], capture_output=True, text=True, check=False)


def test_table_shows_each_target_once_with_its_interval(tmp_path: Path) -> None:
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    target = {"name": "plain", "family": "none", "exhibit": False, "control": True, "verdict": "EXPOSED", "clean_drop": None}
    target |= dict.fromkeys(("clean_accuracy", "worst_pair", "white_box_accuracy"), rate)
    target |= {"worst_pair_held_out": None, "train_multiple": 1.0}
    report = {"targets": [target], "threat": {"text": "Linf, eps = 8/255"}, "n_evaluation": 100}
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = subprocess.run([sys.executable, str(TABLE), str(tmp_path)], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[2] == (
        "| plain | none | EXPOSED | 50.0 (40 to 60) | control | 50.0 (40 to 60) | not measured | 50.0 (40 to 60) | 1.0 x |"
    )


def test_networks_are_shared_once_trained_and_a_gate_has_a_threshold_that_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(GATE)
    study, store, shared = str(tmp_path / "gate.toml"), str(tmp_path / "store"), str(tmp_path / "shared")
    before = example("share_networks.py", study, "--store", store, "--to", shared)
    assert before.returncode == 1, before.stderr
    assert before.stdout == f"0 of 3 networks are in {shared}\n"
    assert before.stderr.count("not trained yet: MLP by CrossEntropy") == 3

    told = example("gate_thresholds.py", study, "--store", store)
    assert told.returncode == 0, told.stderr
    head, rows = told.stdout.splitlines()
    found = re.fullmatch(r"(\w+): threshold (\S+); clean (\S+) % without the gate, by threshold:", head)
    assert found
    name, threshold, alone = found.groups()
    at = dict(row.split(": ") for row in rows.strip().split(", "))
    assert name == "gate"
    if threshold != "none":
        assert float(at[threshold]) >= float(alone)
    lower = [float(share) for t, share in at.items() if threshold == "none" or float(t) < float(threshold)]
    assert all(share < float(alone) for share in lower)

    after = example("share_networks.py", study, "--store", store, "--to", shared)
    assert (after.returncode, after.stdout) == (0, f"3 of 3 networks are in {shared}\n")
    again = example("gate_thresholds.py", study, "--store", shared)
    assert again.stdout == told.stdout
    assert len(list(Path(shared).rglob("arrays.safetensors"))) == 3, "no examples, no answers"
