"""The command line: parse, call one function, print. Imports what a command needs when it runs, so `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from firedoor.errors import FiredoorError, SetupError, SpecError, StoreError

if TYPE_CHECKING:
    from firedoor.study import Study

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measures how adversarial examples spread from model to model, hardens models, and says how far the gain can be trusted.",
    epilog="Exit codes: 0 done, 1 the answer is no, 2 usage or study, 3 some cells failed, 4 environment, 130 interrupted.",
)

Out = Annotated[Path, typer.Option("--out", help="Folder for the report and what it is made of.")]
StoreAt = Annotated[str, typer.Option("--store", envvar="FIREDOOR_STORE", help="Folder where models, crafts and scores are kept.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help='Change a field of the study: --set threat.eps="8/255".')
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the study.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that train and craft; 0 means one for each core.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="In which examples are crafted: exact, or fast (bfloat16). Default: the study's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Trust = Annotated[bool, typer.Option("--trust-study", help="Let the study file import Python code that it names.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")]
StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.toml", help="A study file, or the name of one that is shipped: digits, fashion.")
]


SHARED = {"--out": 1, "--store": 1, "--set": 1, "--seed": 1, "--device": 1, "--json": 0, "-q": 0, "--quiet": 0}  # values they take


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from firedoor import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    store: StoreAt = ".firedoor",
    set_: Set = None,
    seed: Seed = None,
    precision: Precision = None,
    device: Device = "auto",
    workers: Workers = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, attack, defend, measure and judge on handwritten digits: every defence family in a few minutes."""
    _run(Path("digits"), out, store, _overrides(set_, seed, precision), device, workers, as_json, quiet)


@app.command()
def run(
    study: StudyFile,
    out: Out = Path("runs/study"),
    store: StoreAt = ".firedoor",
    set_: Set = None,
    seed: Seed = None,
    precision: Precision = None,
    device: Device = "auto",
    workers: Workers = 0,
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a study. Whatever the store holds is not done again, so an interrupted run goes on where it stopped."""
    _run(study, out, store, _overrides(set_, seed, precision), device, workers, as_json, quiet, trust)


@app.command()
def plan(
    study: StudyFile,
    store: StoreAt = ".firedoor",
    set_: Set = None,
    seed: Seed = None,
    precision: Precision = None,
    workers: Workers = 0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Show what a run would do: what is cached, what is to do, estimated time and disk."""
    from firedoor.plan import plan as make_plan

    with contextlib.redirect_stdout(sys.stderr):  # what models print is no part of the answer
        found = make_plan(_load(study, _overrides(set_, seed, precision), trust), store, workers)
    if as_json:
        _print_json(found)
        return
    from rich.table import Table

    table = Table("work", "to do", "cached", "estimated time", title="Plan")
    for row in found["rows"]:
        table.add_row(row["work"], str(row["to_do"]), str(row["cached"]), _duration(row["seconds"]))
    table.add_row("all, without rung S3", "", "", _duration(found["seconds_without_s3"]), style="bold")
    table.add_row("all, at most", "", "", _duration(found["seconds"]), style="bold")
    _console().print(table)
    most = max(found["audit"].values())
    audit = f"The tests for false security take at most {most:.1f} times the passes of a target's own white-box row. "
    note = f"{audit}{found['workers']} workers. Disk: about {found['bytes'] / 1e6:.0f} MB. {found['note']}"
    _console().print(note, highlight=False)


@app.command()
def train(
    study: StudyFile,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A target or source of the study that is trained by itself.")],
    store: StoreAt = ".firedoor",
    set_: Set = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    trust: Trust = False,
) -> None:
    """Train one network of a study into the store, and go on where a killed training was.

    Several processes train it together: torchrun --nproc_per_node 2 -m firedoor train STUDY.toml NAME
    """
    loaded = _load(study, _overrides(set_, seed, None), trust)
    from firedoor import device as devices
    from firedoor import harden
    from firedoor.store import FileStore

    first = harden.first_process()
    with devices.using(device), _progress(quiet or as_json or not first) as progress:
        found = harden.train(loaded, name, FileStore(store), progress)
    if as_json and first:
        _print_json(found)
    elif not quiet and first:
        text = f"{name} was trained {found['trained']}: {_duration(found['seconds'])}, {found['passes']:.1f} passes per example and epoch."
        _console().print(f"{text} Events: {found['events']}", markup=False, highlight=False)


@app.command()
def certify(
    study: StudyFile,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A target whose wrapper is Smoothing; the network under it is certified.")
    ],
    n: Annotated[int, typer.Option("--n", help="Draws that bound the radius of an image.")] = 10_000,
    n0: Annotated[int, typer.Option("--n0", help="Draws that choose its label.")] = 100,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Chance that a radius is wrong. Default: the target's.")] = None,
    images: Annotated[int, typer.Option("--images", help="How many evaluation images, from the first on.")] = 100,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that gets certificates.json.")] = None,
    store: StoreAt = ".firedoor",
    set_: Set = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    trust: Trust = False,
) -> None:
    """Certified L2 radii of a smoothed target, and what they say of Linf. Every ten images are kept, so a stopped run goes on."""
    loaded = _load(study, _overrides(set_, seed, None), trust)
    if out is not None:
        _writable(out)
    from firedoor import certify as certifying
    from firedoor import device as devices
    from firedoor.store import FileStore

    with devices.using(device), _progress(quiet or as_json) as progress:
        found = certifying.certify(loaded, target, FileStore(store), n, n0, alpha, images, progress)
    if out is not None:
        certifying.write(found, out)
    if as_json:
        _print_json(found)
    elif not quiet:
        _console().print(certifying.shown(found), highlight=False, markup=False)


@app.command()
def report(out: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: Json = False, quiet: Quiet = False) -> None:
    """Rebuild report.html, report.json and report.md from the folder of a run. Needs no model and no torch."""
    summary = _report(out)
    _show(summary, out, as_json, quiet)


@app.command()
def explain(
    out: Annotated[Path, typer.Argument(help="The folder of a run.")],
    target: Annotated[str, typer.Argument(help="A target of that run.")],
    as_json: Json = False,
) -> None:
    """Show the chain from symptom to verdict for one target of a run. Needs no model and no torch."""
    from firedoor.report.explanation import explanation
    from firedoor.report.summary import build

    summary = build(out)
    lines = explanation(summary, target)
    if as_json:
        _print_json(next(t for t in summary["targets"] if t["name"] == target))
        return
    for line in lines:
        _console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command(name="list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="attacks, defences, tiers, parts, losses, wrappers, broken, models, architectures, data ...")
    ],
    pattern: Annotated[str, typer.Argument(help='Only names that match, such as "*fgsm*".')] = "*",
    as_json: Json = False,
) -> None:
    """List what there is of a kind, with its reference; of tiers, what each runs and what that costs for one image."""
    import fnmatch

    from firedoor import catalogue

    if kind == "tiers":
        _list_tiers(pattern, as_json)
        return
    found = [e for e in catalogue.entries(kind) if fnmatch.fnmatch(e.name.lower(), pattern.lower())]
    if as_json:
        keys = ("name", "kind", "family", "reference", "year", "G", "queries", "tier", "summary", "module")
        _print_json([{k: getattr(e, k) for k in keys} for e in found])
        return
    from rich.markup import escape
    from rich.table import Table

    queried = any(e.queries for e in found)
    table = Table(
        "name", "family", "year", "G", *(["queries"] if queried else []), "tier", "what it is", title=f"{len(found)} {kind}"
    )
    for e in found:
        numbers = (e.year, e.G, *((e.queries or None,) if queried else ()), e.tier)
        table.add_row(e.name, e.family, *("" if v is None else str(v) for v in numbers), escape(e.summary))
    _console().print(table)


def _list_tiers(pattern: str, as_json: bool) -> None:
    import fnmatch

    from firedoor import tiers

    rows = [r for r in tiers.listed() if fnmatch.fnmatch(str(r["tier"]).lower(), pattern.lower())]
    if as_json:
        _print_json(rows)
        return
    from rich.table import Table

    table = Table(
        "tier", "attack", "runs on", "G", "queries", title="What each tier adds, for Linf; G and queries as the tier sets them"
    )
    for row in rows:
        table.add_row(*(str(row[k]) for k in ("tier", "attack", "runs_on", "G", "queries")))
    _console().print(table)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="A Python file with an attack, or a gradient part. It is run.")],
    name: Annotated[str | None, typer.Option("--name", help="Judge this one only.")] = None,
    as_json: Json = False,
) -> None:
    """Judge an attack by the contract that every attack of this package keeps: 24 clauses. Runs the file, so read it first."""
    from firedoor.contracts.check import run_check

    raise typer.Exit(run_check(file, as_json, name))


@app.command()
def doctor(store: StoreAt = ".firedoor", as_json: Json = False) -> None:
    """Look at this machine: versions, devices, cores, data sets, the store."""
    from firedoor.doctor import examine

    found = examine(store)
    if as_json:
        _print_json(found)
    else:
        for check in found["checks"]:
            _console().print(
                f"{'ok     ' if check['ok'] else 'missing'}  {check['name']}: {check['text']}", highlight=False, markup=False
            )
    if not all(c["ok"] or not c["needed"] for c in found["checks"]):
        raise typer.Exit(4)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study file."""
    from firedoor.schema import study_schema

    _print_json(study_schema())


def main() -> None:
    """Entry point: every foreseen problem is one message and an exit code."""
    try:
        code = app(_settled(sys.argv[1:]), standalone_mode=False)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            sys.exit(1)  # whoever reads what is printed has had enough
        _fail(
            f"something ended the program (SystemExit: {error.code}); what was finished is kept. Look for sys.exit in your code.", 4
        )
    except FiredoorError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, run the same command to go on", 130)
    except (MemoryError, OSError) as error:
        _fail(f"{type(error).__name__}: {error}. Check space and permissions, then run the same command to go on.", 4)
    except typer.Abort:
        _fail("interrupted; what was finished is kept, run the same command to go on", 130)
    except TyperException as error:  # a usage error, which knows how to print itself
        show: Callable[[], None] = getattr(error, "show", lambda: typer.echo(str(error), err=True))
        show()
        sys.exit(2)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _settled(arguments: list[str]) -> list[str]:
    """The options that all commands share may stand before the command, and with commands that have no use for them."""
    command = typer.main.get_command(app)
    commands: dict[str, Any] = getattr(command, "commands", {})
    shared, rest, i = list[list[str]](), list[str](), 0
    while i < len(arguments) and arguments[i] != "--":
        option, equals, _ = arguments[i].partition("=")
        if option in SHARED:
            taken = 1 if equals else 1 + SHARED[option]
            shared.append(arguments[i : i + taken])
            i += taken
        else:
            rest.append(arguments[i])
            i += 1
    rest += arguments[i:]
    name = next((a for a in rest if a in commands), None)
    if name is None or rest[0] != name:
        return arguments  # help, version, or a mistake that the parser explains
    known = {text for parameter in commands[name].params for text in parameter.opts}
    for words in shared:
        if words[0].partition("=")[0] not in known:
            typer.echo(f"firedoor: {words[0]} has no effect on {name}.", err=True)
    return [name, *(text for words in shared if words[0].partition("=")[0] in known for text in words), *rest[1:]]


def _fail(message: str, code: int) -> None:
    clean = "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
    typer.echo(f"firedoor: {clean}", err=True)
    sys.exit(code)


def _run(
    study: Path,
    out: Path,
    store: str,
    overrides: tuple[str, ...],
    device: str,
    workers: int,
    as_json: bool,
    quiet: bool,
    trust: bool = False,
) -> None:
    loaded = _load(study, overrides, trust)
    _writable(out)
    from firedoor import device as devices
    from firedoor.pipeline import carry_out
    from firedoor.store import FileStore

    with devices.using(device), _progress(quiet or as_json) as progress, contextlib.redirect_stdout(sys.stderr):
        outcome = carry_out(loaded, FileStore(store), progress, workers)  # what models print is no part of the answer
    outcome.write(out, loaded)
    summary = _report(out)
    _show(summary, out, as_json, quiet)
    if outcome.failed:
        for cell, reason in list(outcome.failed.items())[:10]:
            typer.echo(f"failed  {cell}: {reason}", err=True)
        raise typer.Exit(3)


def _overrides(set_: list[str] | None, seed: int | None, precision: str | None) -> tuple[str, ...]:
    named = {"seed": seed, "precision": precision}
    return (*(set_ or ()), *(f"{field}={json.dumps(value)}" for field, value in named.items() if value is not None))


def _load(study: Path, overrides: tuple[str, ...], trust: bool = False) -> Study:
    from firedoor import study as studies

    return studies.load(_shipped(study), overrides, trust)


def _shipped(study: Path) -> Path:
    """A study file, or one that came with the package if only its name is given."""
    if study.exists() or study.suffix or len(study.parts) > 1:
        return study
    here = Path(__file__).parent
    for folder in (here / "studies", here.parent.parent / "studies"):
        if (folder / f"{study}.toml").exists():
            return folder / f"{study}.toml"
    return study


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".tmp-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SetupError(f"the output folder {out} cannot be written ({error.strerror}). Give another with --out.") from None


def _report(out: Path) -> dict[str, Any]:
    from firedoor.report.page import write
    from firedoor.report.summary import build

    try:
        summary = build(out)
        write(summary, out)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise StoreError(
            f"the files in {out} do not belong together ({type(error).__name__}: {error}). Run the study again."
        ) from None
    return summary


def _show(summary: dict[str, Any], out: Path, as_json: bool, quiet: bool) -> None:
    if as_json:
        _print_json(summary)
        return
    if quiet:
        return
    from rich.markup import escape
    from rich.table import Table

    caption = "accuracy in %, with its 95 % interval; worst pair: right on the transferred examples that hurt most"
    table = Table(
        "target",
        "verdict",
        "clean",
        "worst pair",
        "white box",
        "training x",
        title=f"{summary['name']}: {summary['threat']['text']}",
    )
    table.caption = caption
    for t in summary["targets"]:
        multiple = "" if t["train_multiple"] is None else f"{t['train_multiple']:.1f}"
        rates = [_rate(t[k]) for k in ("clean_accuracy", "worst_pair", "white_box_accuracy")]
        table.add_row(escape(t["name"]), t["verdict"], *rates, multiple)
    _console().print(table)
    _console().print(f"Report: {out / 'report.html'}", markup=False, highlight=False)


def _rate(rate: dict[str, float] | None) -> str:
    if rate is None:
        return "not measured"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"


@contextlib.contextmanager
def _progress(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left for each stage on a terminal, a line each minute where standard error goes to a file."""
    from rich.console import Console

    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield (lambda what, done, total: None) if silent else _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _lines(every: float = 60.0) -> Callable[[str, int, int], None]:
    """Tells how far a stage is on standard error, at most once in so many seconds."""
    began: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start, before = began.setdefault(what, (now, done))
        if now - last >= every and done > before:
            last = now
            left = (now - start) / (done - before) * (total - done)
            typer.echo(f"{what}: {done} of {total}, {_duration(left)} left", err=True)

    return show


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_json(value: Any) -> None:
    try:
        typer.echo(json.dumps(value, indent=1, allow_nan=False))
    except ValueError:
        raise SpecError("the result holds a number that JSON cannot carry (NaN or infinity). Please report this.") from None
