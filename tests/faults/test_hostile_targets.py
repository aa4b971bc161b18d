"""A target that is a stranger's Python: refused by name before any cell, or, where it fails later, alone in failing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from firedoor import cli

STRANGERS = """
import asyncio
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

NET = Net().train()

class Bare(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]

class Wide(Net):
    def forward(self, x):
        return super().forward(x).repeat(1, 2)

class NaN(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

class WholeNumbers(Net):
    def forward(self, x):
        return super().forward(x).mul(100).round().long()

class Huge(Net):
    def forward(self, x):
        return super().forward(x) * 1e30

class Prints(Net):
    def forward(self, x):
        print("hello")
        return super().forward(x)

class Learns(Net):
    def forward(self, x):
        with torch.no_grad():
            self.layer.weight.add_(1e-3)
        return super().forward(x)

class Raises(Net):
    def forward(self, x):
        if (x[:, 0, 0, 0] > 0.05).any():
            raise RuntimeError("the corner must be dark")
        return super().forward(x)

class Exits(Net):
    def forward(self, x):
        raise SystemExit(0)

class ExitsLater(Net):
    def forward(self, x):
        if (x[:, 0, 0, 0] > 0.05).any():
            raise SystemExit(0)
        return super().forward(x)

class WideLater(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits.repeat(1, 2) if (x[:, 0, 0, 0] > 0.05).any() else logits

class WideInFull(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits.repeat(1, 2) if len(x) > 4 else logits

class OneRow(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits[:1] if len(x) > 4 else logits

class LearnsUnseen(Net):
    def forward(self, x):
        if len(x) > 4:
            self.layer.weight.data.add_(1e-3)
        return super().forward(x)

class Cancels(Net):
    def forward(self, x):
        raise asyncio.CancelledError

class CancelsLater(Net):
    def forward(self, x):
        if (x[:, 0, 0, 0] > 0.05).any():
            raise asyncio.CancelledError("no more of that")
        return super().forward(x)

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class MuteLater(Net):
    def forward(self, x):
        if (x[:, 0, 0, 0] > 0.05).any():
            raise Mute
        return super().forward(x)

class ExitsMute(Net):
    def forward(self, x):
        raise SystemExit(Mute())

class ManyLines(Net):
    def forward(self, x):
        raise RuntimeError("one\\nTraceback (most recent call last)\\nthree")

class Erases(Net):
    def forward(self, x):
        return super().forward(x.zero_())

class Doubles(Net):
    def forward(self, x):
        torch.set_default_dtype(torch.float64)
        return super().forward(x)

class Tires(Net):
    calls = 0

    def forward(self, x):
        Tires.calls += 1
        if Tires.calls > 12:
            raise RuntimeError("that was enough")
        return super().forward(x)

class PrintsInFull(Net):
    def forward(self, x):
        if len(x) > 4:
            print("hello")
        return super().forward(x)

def good():
    return NET

def ends():
    raise SystemExit(0)

def number():
    return 5

def broken():
    raise ValueError("no weights here")
"""
STUDY = """
[data]
type = "Digits"
splits = {{ train = 100, evaluation = 40 }}
[threat]
type = "Linf"
eps = "40/255"
[architecture]
type = "MLP"
[fit]
epochs = 1
[sources.s]
seed = 1
[attacks.SignNoise]
[attacks.FGSM]
[white_box.PGD]
steps = 2
keep = "best"
[targets.undefended]
seed = 2
[targets.stranger]
type = "Imported"
function = "{function}"
"""
REFUSED = {
    "Bare": "without parameters",
    "number": "got a int",
    "broken": "no weights here",
    "nowhere": "gave no model",
    "Wide": "must give logits of shape (4, 10)",
    "NaN": "NaN or infinite logits",
    "WholeNumbers": "as floating-point numbers, got torch.int64",
    "Huge": "must give logits up to",
    "Prints": "prints when asked",
    "Learns": "changes its own weights",
    "Exits": "SystemExit",
    "ends": "SystemExit",
    "Cancels": "CancelledError",
    "ExitsMute": "SystemExit: its text cannot be read",
    "ManyLines": "one Traceback (most recent call last) three",
    "WideInFull": "must give logits of shape (40, 10 or 11), got (40, 20)",
    "OneRow": "must give logits of shape (40, 10 or 11), got (1, 10)",
    "LearnsUnseen": "weights changed",
}
LATER = {
    "Raises": "the corner must be dark",
    "ExitsLater": "tried to end the program",
    "WideLater": "got (40, 20)",
    "Tires": "enough",
    "CancelsLater": "CancelledError: no more of that",
    "MuteLater": "Mute: its text cannot be read",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a study with this function as a target: (exit code, what was said on standard error)."""
    (tmp_path / "strangers.py").write_text(STRANGERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "strangers", raising=False)

    def call(function: str, *options: str) -> tuple[int, str]:
        (tmp_path / "study.toml").write_text(STUDY.format(function=function))
        words = ["firedoor", "run", "study.toml", "--store", "store", "--out", "out", "--workers", "1", "-q", *options]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return call


def crafted(folder: Path) -> int:
    return sum(b'"home"' in f.read_bytes() for f in folder.glob("store/objects/**/*") if f.is_file())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_before_any_cell(run, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    code, said = run(f"strangers:{name}", "--trust-study")
    assert code == 2
    assert REFUSED[name] in said
    assert "stranger" in said
    assert said.count("\n") == 1, "one message, no traceback"
    assert crafted(tmp_path) == 0, "nothing was crafted before the refusal"


def test_code_is_not_imported_without_trust(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, said = run("strangers:good")
    assert code == 2
    assert "would import and run 'strangers:good'" in said
    assert "strangers" not in sys.modules


@pytest.mark.parametrize("function", ["os:system('true')", "strangers.good", "a/b:c", ":x", "x:"])
def test_a_function_is_a_name_and_nothing_else(run, function: str) -> None:  # type: ignore[no-untyped-def]
    code, said = run(function, "--trust-study")
    assert code == 2
    assert 'must be written "package.module:name"' in said


@pytest.mark.parametrize("name", LATER)
def test_one_that_fails_later_fails_alone(run, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    code, said = run(f"strangers:{name}", "--trust-study")
    assert code == 3, said
    assert LATER[name] in said
    assert "Traceback" not in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    cells = {(c["source"], c["attack"], c["target"]): c for c in report["cells"]}
    assert cells["s", "FGSM", "undefended"]["robust_accuracy"] is not None, "the other cells are kept"
    if name != "Tires":  # how far that one gets is not what is asked of it
        assert cells["s", "FGSM", "stranger"]["robust_accuracy"] is None
        assert "failed" in cells["s", "FGSM", "stranger"]["reason"]
    assert crafted(tmp_path) > 0


def test_what_a_model_prints_is_no_part_of_the_answer(run, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.toml").write_text(STUDY.format(function="strangers:PrintsInFull"))
    words = ["firedoor", "run", "study.toml", "--store", "store", "--out", "out", "--workers", "1", "--trust-study", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(said.out)["name"]
    assert "hello" in said.err


def cells(tmp_path: Path, target: str) -> dict[str, object]:
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return {f"{c['source']} {c['attack']}": c["robust_accuracy"] for c in report["cells"] if c["target"] == target}


def test_one_that_writes_to_what_it_is_shown_reaches_no_other_target_and_nothing_that_is_kept(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("strangers:good", "--trust-study", "--store", "apart")[0] == 0
    undefended, honest = cells(tmp_path, "undefended"), cells(tmp_path, "stranger")
    assert run("strangers:Erases", "--trust-study")[0] == 0
    assert cells(tmp_path, "undefended") == undefended
    assert run("strangers:good", "--trust-study")[0] == 0
    assert cells(tmp_path, "undefended") == undefended
    assert cells(tmp_path, "stranger") == honest


def test_one_that_changes_the_default_precision_changes_it_for_nobody(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("strangers:Doubles", "--trust-study")[0] == 0
    assert torch.get_default_dtype() == torch.float32


def test_a_good_one_is_measured_and_stays_as_it_was(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, said = run("strangers:good", "--trust-study")
    assert code == 0, said
    net = sys.modules["strangers"].NET
    torch.manual_seed(1)
    assert torch.equal(net.layer.weight, nn.Linear(64, 10).weight)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
