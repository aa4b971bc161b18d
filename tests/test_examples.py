"""The examples run, and say what the report says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firedoor.matrix import open_matrix

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


SEEDS = """
audit = "preflight"
same_defence = ["at"]
seen = ["public", "FGSM"]
[data]
type = "Digits"
splits = { train = 300, development = 40, evaluation = 100 }
[threat]
type = "Linf"
eps = "60/255"
[architecture]
type = "MLP"
[fit]
epochs = 4
[sources.public]
seed = 1
[sources.other]
architecture = { type = "MLP", width = 40 }
seed = 2
[attacks.FGSM]
[attacks.PGD]
steps = 3
[targets.undefended]
seed = 3
[targets.undefended_2]
seed = 4
[targets.at]
seed = 3
fit = { loss = { type = "Fast", threat = { type = "Linf", eps = "60/255" } } }
[targets.at_2]
seed = 4
fit = { loss = { type = "Fast", threat = { type = "Linf", eps = "60/255" } } }
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


@pytest.mark.parametrize(
    ("script", "words", "code", "said"),
    [
        ("table.py", ["NOWHERE"], 4, "report.json is needed"),
        ("defences_table.py", ["OTHER"], 2, "must be a report of a run"),
        ("defences_table.py", ["OTHER", "page.md"], 2, "needs the name of its block"),
        ("exhibits_table.py", ["page.md", "block"], 2, "required: OUT"),
        ("results_table.py", ["NOWHERE"], 4, "matrix.nc is missing"),
        ("results_table.py", ["NOWHERE", "--ours", "a"], 2, "--ours and --theirs go together"),
        ("training_sets_table.py", ["NOWHERE", "STORE"], 2, "study.toml' cannot be read"),
        ("share_networks.py", ["NOWHERE", "--store", "STORE", "--to", "STORE"], 2, "cannot be read"),
        ("gate_thresholds.py", ["NOWHERE", "--store", "STORE"], 2, "cannot be read"),
        ("development_table.py", ["NOWHERE", "--store", "STORE"], 2, "cannot be read"),
        ("attacks_table.py", ["NOWHERE"], 2, "a page of text is needed"),
    ],
)
def test_what_an_example_cannot_use_is_told_in_one_message(
    tmp_path: Path, script: str, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text("[]")
    places = {"NOWHERE": str(tmp_path / "nowhere"), "OTHER": str(tmp_path / "other"), "STORE": str(tmp_path / "store")}
    told = example(script, *(places.get(word, word) for word in words))
    assert (told.returncode, told.stdout) == (code, "")
    assert said in told.stderr
    assert "Traceback" not in told.stderr


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


def test_the_results_of_a_study_count_pairs_by_the_control_and_set_seeds_against_each_other(tmp_path: Path) -> None:
    (tmp_path / "seeds.toml").write_text(SEEDS)
    for out, more in (("large", ()), ("small", ("--set", 'threat.eps="1/255"', "--set", "first=50"))):
        words = [
            str(tmp_path / "seeds.toml"),
            "--store",
            str(tmp_path / "store"),
            "--out",
            str(tmp_path / out),
            "--workers",
            "1",
            "-q",
            *more,
        ]
        subprocess.run([sys.executable, "-m", "firedoor", "run", *words], check=True, capture_output=True)
    sides = ("--ours", "at,at_2", "--theirs", "undefended,undefended_2", "--controls", "undefended,undefended_2")
    told = example("results_table.py", str(tmp_path / "large"), str(tmp_path / "small"), *sides)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    table = {
        cells[0].strip(): dict(zip(head, map(str.strip, cells), strict=True))
        for cells in (r.strip("|").split("|") for r in lines[2:6])
    }
    matrix = open_matrix(tmp_path / "large" / "matrix.nc")
    right = {p: matrix.right(*p, "undefended").mean() for p in (("public", "PGD"), ("other", "FGSM"), ("other", "PGD"))}
    counted = [f"{s} x {a}" for (s, a), share in right.items() if share <= 0.5]
    assert len(counted) > 0
    said = next(line for line in lines if line.startswith("Held-out pairs that count"))
    assert set(said.removesuffix(".").split(": ")[2].split(", ")) == set(counted), "public x FGSM is seen"
    worst = table["undefended"][f"worst of {len(counted)} held-out pairs"]
    assert float(worst.split()[0]) == pytest.approx(100 * min(v for v in right.values() if v <= 0.5), abs=0.05)
    small = open_matrix(tmp_path / "small" / "matrix.nc")
    assert len(small.y) == 50
    assert float(table["at"]["worst pair, Linf, eps = 1/255"].split()[0]) > float(worst.split()[0])
    gaps = [float(re.sub(r".*: (-?[\d.]+) .*", r"\1", line)) for line in lines if " over " in line]
    mean = float(re.search(r"Ahead by (-?[\d.]+)", told.stdout)[1])  # type: ignore[index]
    assert mean == pytest.approx(sum(gaps) / 2, abs=0.06)
    lost = float(re.search(r"at_2, against undefended_2: (-?[\d.]+)", told.stdout)[1])  # type: ignore[index]
    assert lost == pytest.approx(100 * float(matrix.clean("undefended_2").mean() - matrix.clean("at_2").mean()), abs=0.06)
    again = matrix.right("same defence", "PGD", "at"), matrix.right("same defence", "FGSM", "at")
    assert float(table["at"]["worst pair, same defence"].split()[0]) == pytest.approx(100 * min(r.mean() for r in again), abs=0.05)
    assert table["undefended"]["worst pair, same defence"] == "not run"
    assert "not run where rungs S0 to S2 already broke it." in told.stdout
    assert "MB, " in table["at"]["memory of training, of 250 answers"]
