"""The contract on a stranger's file. It runs that file: choosing to check it is choosing to run it, with all that it may do.

It runs in a child process, which is no cage: the child keeps a hang or a crash from ending the judge, not the file from the machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

import firedoor
from firedoor.catalogue import nearest
from firedoor.contracts.attack import CLAUSES, ORDER, first_broken, judged
from firedoor.contracts.entries import attack_maker, looped_maker
from firedoor.contracts.subject import Subject, Verdict
from firedoor.errors import DataError, FiredoorError, SpecError

__all__ = ["CORE", "check", "found_in", "not_judged", "run_check"]

PACKAGE = Path(firedoor.__file__).parent
CORE = (1, 2, 3, 4, 7, 10, 11, 12, 14, 21, 23)  # clauses from which nothing that an attack declares excuses it
LIMIT = 90.0  # seconds that a clause may take
START = 60.0  # seconds, at least, for the imports of the file
PARTS = {("gradient", "step"): "parts", ("loss",): "estimator"}  # arguments of __call__, and the field of the loop


def check(file: Path, name: str | None = None, clauses: Iterable[int] = ORDER, limit: float = LIMIT) -> tuple[Verdict, ...]:
    """The verdicts on every attack and part that `file` defines, or on the one called `name`. THE FILE IS RUN, as the user's choice.

    A clause during which the child process dies, or says nothing for `limit` seconds, has failed; the others are judged all the same.
    Errors: DataError if the file cannot be read or run; SpecError if it holds no attack, or none of that name.
    """
    if not file.is_file():
        raise DataError(f"{file} is no file. Give the path of a Python file that defines an attack.")
    wanted, verdicts = tuple(clauses), list[Verdict]()
    child = _Child(file)
    try:
        names = child.names(max(limit, START))
        if name is not None and name not in names:
            raise SpecError(f"{file} defines no attack called {name!r}.{nearest(name, names)} It has {', '.join(names)}.")
        for one in names if name is None else [name]:
            for number in wanted:
                verdict = child.verdict(one, number, limit)
                if verdict is None:
                    verdicts.append(Verdict(number, one, "fail", child.end(limit)))
                    child = _Child(file)
                    child.names(max(limit, START))
                else:
                    verdicts.append(verdict)
    finally:
        child.stop()
    return tuple(verdicts)


def not_judged(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """The clauses that everybody must be judged by, and that were skipped: whoever refuses to be judged has shown nothing."""
    return tuple(v for v in verdicts if v.clause in CORE and v.outcome == "skip")


def run_check(file: Path, as_json: bool, name: str | None = None) -> int:
    """What the command line calls: prints the table or the JSON. 0: all pass; 1: a clause failed, or one of CORE was skipped; 2: no file or attack."""
    try:
        verdicts = check(file, name)
    except FiredoorError as error:
        typer.echo(f"firedoor: {error}", err=True)
        return 2
    names = list(dict.fromkeys(v.entry for v in verdicts))
    by_name = {n: [v for v in verdicts if v.entry == n] for n in names}
    if as_json:
        typer.echo(json.dumps({"file": str(file), "attacks": [_told(n, by_name[n]) for n in names]}, indent=1))
    else:
        for n in names:
            _show(n, by_name[n])
    return 1 if first_broken(verdicts) or not_judged(verdicts) else 0


def _told(name: str, verdicts: list[Verdict]) -> dict[str, Any]:
    broken = first_broken(verdicts)
    return {
        "name": name,
        "passed": sum(v.outcome == "pass" for v in verdicts),
        "failed": sum(v.outcome == "fail" for v in verdicts),
        "skipped": sum(v.outcome == "skip" for v in verdicts),
        "first_broken": None if broken is None else _row(broken),
        "not_judged": [v.clause for v in not_judged(verdicts)],
        "clauses": [_row(v) for v in sorted(verdicts, key=lambda v: v.clause)],
    }


def _row(verdict: Verdict) -> dict[str, Any]:
    title = CLAUSES[verdict.clause].title
    return {"clause": verdict.clause, "title": title, "outcome": verdict.outcome, "text": verdict.text}


def _show(name: str, verdicts: list[Verdict]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("clause", "what it demands", "outcome", "measured, and its bound", title=f"{escape(name)}: the attack contract")
    for v in sorted(verdicts, key=lambda v: v.clause):
        colour = {"pass": "green", "fail": "red", "skip": "yellow"}[v.outcome]
        table.add_row(str(v.clause), CLAUSES[v.clause].title, f"[{colour}]{v.outcome}[/]", escape(v.text))
    console, broken = Console(), first_broken(verdicts)
    console.print(table)
    skipped = not_judged(verdicts)
    if skipped:
        clauses = ", ".join(str(v.clause) for v in sorted(skipped, key=lambda v: v.clause))
        text = f"{name} is not shown to keep the contract: it was not judged by {clauses}. The first: {skipped[0].text}"
        console.print(text, markup=False, style="bold red")
    if broken is None and not skipped:
        console.print(f"{name} keeps the contract.", markup=False)
    elif broken is not None:
        text = f"{name} breaks clause {broken.clause} ({CLAUSES[broken.clause].title}) first: {broken.text}"
        console.print(text, markup=False, style="bold red")


# ---------------------------------------------------------------- in the parent: a child that may hang or die


class _Child:
    """A process that runs the file, says what is in it, and then answers one clause at a time."""

    def __init__(self, file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._file = file
        self._line, other = context.Pipe()
        self._process = context.Process(target=_child, args=(str(file), other, os.getpid()), daemon=True)
        self._process.start()
        other.close()

    def names(self, limit: float) -> list[str]:
        """What the file defines. Errors: DataError if it cannot be run; SpecError if it holds no attack."""
        answer = self._next(limit)
        if not isinstance(answer, list):
            why = answer if isinstance(answer, str) else self.end(limit)
            raise DataError(f"{self._file} cannot be read as a Python file with attacks: {why}. Run it by itself first.")
        if not answer:
            raise SpecError(
                f"{self._file} defines no attack: that is a public dataclass or function with a `threat` field, or a part with "
                "__call__(gradient, step)."
            )
        return answer

    def verdict(self, name: str, clause: int, limit: float) -> Verdict | None:
        """None if the process hangs, or has died."""
        try:
            self._line.send((name, clause))
        except OSError:
            return None
        answer = self._next(limit)
        return answer if isinstance(answer, Verdict) else None

    def end(self, limit: float) -> str:
        """Stops it; why it said no more."""
        self._process.join(1)
        code = self._process.exitcode
        self.stop()
        if code is None:
            return f"no answer for {limit:g} s, at most that allowed; stopped"
        return f"the process died (exit code {code}); it must live"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()

    def _next(self, limit: float) -> list[str] | Verdict | str | None:
        try:
            if self._line.poll(limit):
                answer: list[str] | Verdict | str = self._line.recv()
                return answer
        except (EOFError, OSError):
            pass
        return None


# ---------------------------------------------------------------- in the child


def _child(file: str, line: Connection, parent: int) -> None:
    """Sends the names, then a verdict for each (name, clause) it is asked."""
    import torch

    os.dup2(2, 1)  # what the file prints must not mix with our own output
    torch.set_num_threads(1)
    _die_with(parent)
    try:
        subjects = {s.name: s for s in found_in(_module(Path(file)))}
    except BaseException as error:  # a file may also call sys.exit
        line.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    line.send(list(subjects))
    while True:
        name, clause = line.recv()
        line.send(next(judged(subjects[name], [clause])))


def _die_with(parent: int) -> None:
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _module(file: Path) -> ModuleType:
    name = f"stranger_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise DataError(f"{file.name} has no ending that Python runs. Call it something.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # annotations of its dataclasses are looked up there
    sys.path.insert(0, str(file.resolve().parent))
    found.loader.exec_module(module)
    return module


def found_in(module: ModuleType) -> tuple[Subject, ...]:
    """The attacks, parts, objectives and estimators that a module itself defines, as what is judged."""
    found, ours = [], Path(module.__file__ or "").resolve().is_relative_to(PACKAGE)  # a stranger's own word makes him no null
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        family = re.search(r"Family: ([^.;]+)", inspect.getdoc(value) or "")
        place = _place(value)
        if place is not None:
            maker = attack_maker(value) if place == "attack" else looped_maker(value, place)
            said = family.group(1) if family else ""
            found.append(Subject(name, maker, "" if said == "null" and not ours else said, stranger=not ours))
    return tuple(found)


def _place(value: Any) -> str | None:
    """Where a definition belongs: 'attack', a field of the loop, or nowhere."""
    if inspect.isfunction(value):
        return "attack" if _fillable(value) and value.__annotations__.get("return") not in (None, "None") else None
    if not inspect.isclass(value) or not dataclasses.is_dataclass(value):
        return None
    call = tuple(inspect.signature(value.__call__).parameters)[1:] if callable(getattr(value, "__call__", None)) else ()  # noqa: B004
    if call in PARTS:
        return PARTS[call]
    if hasattr(value, "start") and tuple(inspect.signature(value.start).parameters)[1:] == ("model", "x", "y"):
        return "objective"
    return "attack" if _fillable(value) else None


def _fillable(value: Callable[..., Any]) -> bool:
    """Whether it takes a threat, or an attack, and everything else that it needs is at hand."""
    parameters = inspect.signature(value).parameters
    needed = {k for k, p in parameters.items() if p.default is p.empty}
    return bool(needed & {"threat", "attack"}) and needed <= {"threat", "attack", "data"}
