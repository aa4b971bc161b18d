"""The contract is tested too: honest files pass it, and each of 24 sabotaged ones breaks the clause that names its defect."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from firedoor.contracts.attack import CLAUSES, first_broken
from firedoor.contracts.check import check, run_check
from firedoor.errors import DataError, SpecError


def _beside(name: str) -> ModuleType:
    """A module of this folder, wherever the tests are started from."""
    found = importlib.util.spec_from_file_location(f"contract_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


sabotage = _beside("sabotage")
FAST = ("no-op", "leaves eval mode after an exception", "loss averaged over the batch")
BY_NAME = [pytest.param(i, id=s.name, marks=[] if s.name in FAST else [pytest.mark.slow]) for i, s in enumerate(sabotage.SABOTAGES)]


@pytest.mark.parametrize("number", BY_NAME)
def test_a_sabotaged_attack_breaks_the_clause_that_names_its_defect_first(number: int, tmp_path: Path) -> None:
    caught, said = sabotage.caught(number, tmp_path)
    assert caught, said


@pytest.mark.parametrize(
    "original",
    [
        pytest.param(
            s, id=f"{s.attack}, {len(s.prepare)} edits", marks=[pytest.mark.slow] if s.prepare or s.attack != "Iterated" else []
        )
        for s in sabotage.ORIGINALS
    ],
)
def test_the_honest_files_that_they_are_made_from_keep_every_clause(original: sabotage.Sabotage, tmp_path: Path) -> None:
    verdicts = sabotage.judged(original, tmp_path, spoiled=False)
    assert sorted(v.clause for v in verdicts) == sorted(CLAUSES)
    broken = first_broken(verdicts)
    assert broken is None, f"clause {broken.clause}: {broken.text}"
    assert not [v for v in verdicts if v.outcome == "skip"], [v for v in verdicts if v.outcome == "skip"]


def test_there_are_24_with_a_clause_each_and_every_edit_applies_exactly_once(tmp_path: Path) -> None:
    assert len({s.name for s in sabotage.SABOTAGES}) == 24
    for s in sabotage.SABOTAGES:
        text = sabotage.written(s, tmp_path).read_text()
        assert text != sabotage.written(s, tmp_path, spoiled=False).read_text(), s.name
        ast.parse(text)
        assert s.clause in CLAUSES


# ---------------------------------------------------------------- strangers that are worse than wrong

HEAD = """
import os, sys, time
from dataclasses import dataclass
from firedoor.protocols import Access, Semantics

@dataclass(frozen=True)
class Mine:
    threat: object
    gradients = queries = 0
    needs = Access.GRADIENTS
    semantics = Semantics()
    def __call__(self, model, x, y):
        BODY
        return x.clone()
"""


def stranger(folder: Path, body: str = "pass", name: str = "mine") -> Path:
    file = folder / f"{name}.py"
    file.write_text(HEAD.replace("BODY", body))
    return file


def test_a_hang_and_a_crash_are_failed_clauses_and_the_other_clauses_are_judged(tmp_path: Path) -> None:
    body = "time.sleep(99 if len(x) == 0 else 0); os._exit(7) if len(x) == 1 else None; print('noise')"
    verdicts = {v.clause: v for v in check(stranger(tmp_path, body), clauses=(10, 11, 4), limit=5)}
    assert verdicts[10].outcome == "fail"
    assert "no answer for 5 s" in verdicts[10].text
    assert verdicts[11].outcome == "fail"
    assert "died (exit code 7)" in verdicts[11].text
    assert verdicts[4].outcome == "pass", verdicts[4].text


def test_an_exception_is_a_failed_clause_with_its_text(tmp_path: Path) -> None:
    (verdict,) = check(stranger(tmp_path, "raise KeyError('oh no')"), clauses=(11,))
    assert verdict.outcome == "fail"
    assert "KeyError" in verdict.text
    assert "oh no" in verdict.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import no_such_library\n", "no_such_library"),
        ("import sys; sys.exit(3)\n", "SystemExit"),
        ("x = 1\n", "defines no attack"),
    ],
)
def test_a_file_without_an_attack_gives_exit_code_2_and_the_reason(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert run_check(file, as_json=True) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_no_file_and_no_such_attack_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        check(tmp_path / "nothing.py")
    with pytest.raises(SpecError, match=r"no attack called 'Min'. Did you mean 'Mine'\?"):
        check(stranger(tmp_path), "Min")


def test_the_report_names_the_clause_that_broke_first_with_value_and_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = check(stranger(tmp_path), clauses=(4, 11, 23))
    monkeypatch.setattr("firedoor.contracts.check.check", lambda file, name: verdicts)
    assert run_check(stranger(tmp_path), as_json=True) == 1
    (told,) = json.loads(capsys.readouterr().out)["attacks"]
    assert (told["name"], told["passed"], told["failed"], told["skipped"]) == ("Mine", 2, 1, 0)
    assert told["first_broken"]["clause"] == 23
    assert "8, at most 0 allowed" in told["first_broken"]["text"]
    assert run_check(stranger(tmp_path), as_json=False) == 1
    assert "Mine breaks clause 23" in capsys.readouterr().out
