"""The command line: what it prints, how it ends, and that every foreseen problem is one message."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import firedoor
from firedoor import catalogue, cli

ROOT = Path(__file__).parent.parent
STUDY = """
[data]
type = "Arrays"
name = "mine.npz"
root = "{root}"

[threat]
type = "Linf"
eps = "8/255"

[architecture]
type = "MLP"

[fit]
epochs = 1

[sources.s]
seed = 1
[targets.t]
seed = 2
[attacks.FGSM]
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run the command line in this process: call("list", "attacks") gives (exit code, standard output, standard error)."""
    monkeypatch.setenv("FIREDOOR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FIREDOOR_DATA", str(tmp_path / "nowhere"))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["firedoor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def one_message(result: tuple[int, str, str], code: int, *words: str) -> None:
    """The call failed with that code, printed nothing on standard output, and one message that holds the words."""
    got, out, err = result
    assert got == code, err
    assert out == ""
    assert err.startswith("firedoor: ")
    assert err.count("\n") == 1, f"more than one line: {err}"
    assert "Traceback" not in err
    for word in words:
        assert word in err, f"{word!r} is not in {err!r}"


def arrays(folder: Path, x: np.ndarray, y: np.ndarray, change: tuple[str, str] = ("", "")) -> Path:
    """A study over arrays, as a file."""
    np.savez(folder / "mine.npz", x=x, y=y)
    file = folder / "study.toml"
    file.write_text(STUDY.format(root=folder.as_posix()).replace(*change), encoding="utf-8")
    return file


def images(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Different grey images of two classes."""
    x = np.zeros((n, 1, 4, 4), dtype=np.float32)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = np.arange(n) / n, np.arange(n) % 2
    return x, np.arange(n) % 2


# ---------------------------------------------------------------- cheap to start


def in_new_process(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_and_help_load_neither_torch_nor_numpy() -> None:
    heavy = "print(sorted({'torch', 'numpy', 'scipy', 'xarray', 'altair'} & set(sys.modules)))"
    assert in_new_process(f"import sys, firedoor; {heavy}").strip() == "[]"
    shown = in_new_process(
        f"import sys; sys.argv = ['firedoor', '--help']\nfrom firedoor.cli import main\ntry:\n    main()\nfinally:\n    {heavy}"
    )
    assert shown.strip().endswith("[]")
    assert "Exit codes" in shown
    for command in ("demo", "run", "plan", "report", "list", "doctor", "schema"):
        assert command in shown


def test_listing_needs_no_torch() -> None:
    shown = in_new_process(
        "import sys; sys.argv = ['firedoor', 'list', 'attacks', '--json']\nfrom firedoor.cli import main\ntry:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr); assert 'torch' not in sys.modules"
    )
    assert json.loads(shown)


def test_version_and_no_command(call) -> None:  # type: ignore[no-untyped-def]
    assert call("--version")[:2] == (0, firedoor.__version__ + "\n")
    assert "Usage" in "".join(call()[1:])


# ---------------------------------------------------------------- list, schema, plan


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_list_gives_one_row_for_each_published_name(call, kind: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("list", kind, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [r["name"] for r in rows] == [e.name for e in catalogue.entries(kind)]
    keys = (r["name"] if kind != "defences" else (r["name"], r["family"]) for r in rows)
    assert len(set(keys)) == len(rows), "a name twice; only a defence of two families may stand twice"
    for row in rows:
        assert list(row) == ["name", "kind", "family", "reference", "year", "G", "queries", "tier", "summary", "module"]
        assert row["kind"] == kind
        assert row["reference"]
        assert row["summary"].endswith(".")
        assert row["year"] is None or 1900 < row["year"] < 2100


def test_list_takes_a_pattern_and_prints_a_table(call) -> None:  # type: ignore[no-untyped-def]
    named = [r["name"] for r in json.loads(call("list", "attacks", "*FgSm*", "--json")[1])]
    assert named == [e.name for e in catalogue.entries("attacks") if "fgsm" in e.name.lower()]
    assert len(named) >= 5
    code, out, _ = call("list", "attacks", "*fgsm*")
    assert code == 0
    assert all(name in out for name in named)
    assert json.loads(call("list", "attacks", "nothing like it", "--json")[1]) == []


def test_list_of_an_unknown_kind_names_the_nearest(call) -> None:  # type: ignore[no-untyped-def]
    one_message(call("list", "atacks"), 2, "atacks", "Did you mean 'attacks'?")


def test_the_schema_is_valid_and_accepts_the_shipped_studies(call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("schema")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert "attacks.Torchattacks" in schema["$defs"], "adapters of other libraries can be named like any attack"
    files = sorted((ROOT / "studies").glob("*.toml"))
    assert files
    for file in files:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        assert not list(validator.iter_errors(table)), f"{file.name} does not fit the schema"
        for path, value in (
            (("threat", "eps"), "8 of 255"),
            (("targetz",), {}),
            (("attacks", "FGSM"), {"stepps": 3}),
            (("seed",), "one"),
        ):
            broken = json.loads(json.dumps(table))
            place = broken
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            assert list(validator.iter_errors(broken)), f"the schema takes {value!r} for {'.'.join(path)}"


def test_plan_counts_the_work_and_does_none_of_it(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = arrays(tmp_path, *images())
    code, out, err = call("plan", study, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = {r["work"]: r for r in found["rows"]}
    assert rows["train"]["to_do"] == 2, "one source and one target"
    assert rows["train"]["cached"] == 0
    assert rows["craft transfers"]["to_do"] == 1, "one source, one attack, one shard"
    assert found["seconds"] > 0
    assert found["bytes"] > 0
    assert not list((tmp_path / "store").rglob("*.safetensors")), "a plan must not train or craft"
    assert "Plan" in call("plan", study)[1]


# ---------------------------------------------------------------- exit 2: the request


def test_an_unknown_key_names_the_nearest(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one_message(
        call("plan", arrays(tmp_path, *images(), ("[attacks.FGSM]", "[atacks.FGSM]"))), 2, "atacks", "Did you mean 'attacks'?"
    )
    one_message(call("plan", arrays(tmp_path, *images(), ("epochs", "epoch"))), 2, "epoch", "Did you mean 'epochs'?")
    one_message(call("plan", arrays(tmp_path, *images(), ('"MLP"', '"MPL"'))), 2, "MPL", "Did you mean 'MLP'?")
    one_message(call("plan", arrays(tmp_path, *images(), ("attacks.FGSM", "attacks.FGMS"))), 2, "FGMS", "Did you mean 'FGSM'?")


@pytest.mark.parametrize(
    ("eps", "words"),
    [
        ("-1", ("eps", "0 or more", "-1")),
        ('"-8/255"', ("eps", "0 or more")),
        ("nan", ("eps", "finite")),
        ("inf", ("eps", "finite")),
        ('"1/0"', ("eps", "1/0")),
        ('"eight"', ("eps", "eight")),
        ("true", ("eps", "True")),
    ],
)
def test_a_budget_that_is_none(call, tmp_path: Path, eps: str, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    one_message(call("run", arrays(tmp_path, *images(), ('"8/255"', eps)), "--out", tmp_path / "out"), 2, *words)
    one_message(call("plan", arrays(tmp_path, *images()), "--set", f"threat.eps={eps}"), 2, *words)


def test_a_study_that_is_no_text_or_not_there(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(bytes(range(256)) * 10)
    one_message(call("run", binary), 2, "binary.toml", "TOML")
    (tmp_path / "half.toml").write_text('[data]\ntype = "Digi', encoding="utf-8")
    one_message(call("run", tmp_path / "half.toml"), 2, "half.toml", "TOML")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 20_000, encoding="utf-8")
    one_message(call("run", tmp_path / "deep.toml"), 2, "deep.toml")
    (tmp_path / "huge.toml").write_text("#" * 1_000_001, encoding="utf-8")
    one_message(call("run", tmp_path / "huge.toml"), 2, "1000001")
    one_message(call("run", tmp_path / "none.toml"), 2, "none.toml", "cannot be read")
    one_message(call("run", "no-such-study"), 2, "no-such-study", "cannot be read")
    one_message(call("run", tmp_path), 2, "cannot be read")


def test_hostile_text_in_a_message_is_made_harmless(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = arrays(tmp_path, *images(), ("[attacks.FGSM]", '["\\u001b[31m red"]'))
    code, out, err = call("plan", study)
    assert (code, out) == (2, "")
    assert "\x1b" not in err
    assert "red" in err


def test_bad_overrides(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = arrays(tmp_path, *images())
    one_message(call("plan", study, "--set", "threat.eps"), 2, "a.b=value")
    one_message(call("plan", study, "--set", "sed=3"), 2, "Did you mean 'seed'?")
    one_message(call("plan", study, "--set", "threat.eps.x=3"), 2, "eps")
    assert call("plan", study, "--set", 'threat.eps="4/255"', "--set", "seed=3", "--json")[0] == 0


def test_an_unknown_option_or_command_is_a_usage_error(call) -> None:  # type: ignore[no-untyped-def]
    for arguments in (("run",), ("rnu",), ("list", "attacks", "--jsn"), ("run", "digits", "--workers", "many")):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err
        assert "Traceback" not in err


def bad_arrays() -> dict[str, tuple[np.ndarray, np.ndarray, tuple[str, ...]]]:
    x, y = images()
    wrong_label, negative = y.copy(), y.copy()
    wrong_label[7], negative[7] = 5, -1
    bright, dark, missing, endless = (x.copy() for _ in range(4))
    bright[3, 0, 2, 2], dark[3, 0, 2, 2], missing[3, 0, 2, 2], endless[3, 0, 2, 2] = 1.5, -0.1, np.nan, np.inf
    return {
        "label out of range": (x, wrong_label, ("5",)),
        "label below zero": (x, negative, ("-1",)),
        "image over 1": (bright, y, ("1.5",)),
        "image under 0": (dark, y, ("-0.1",)),
        "NaN in an image": (missing, y, ("NaN",)),
        "infinity in an image": (endless, y, ("inf",)),
        "one label short": (x, y[:-1], ("39", "40")),
        "float labels": (x, y.astype(float), ("whole numbers",)),
        "channels last": (np.moveaxis(x, 1, 3), y, ("transpose",)),
        "0..255 as float": (x * 255, y, ("[0,1]",)),
    }


@pytest.mark.parametrize("case", bad_arrays())
def test_bad_images_and_labels_are_one_message(call, tmp_path: Path, case: str) -> None:  # type: ignore[no-untyped-def]
    x, y, words = bad_arrays()[case]
    study = arrays(tmp_path, x, y, ('name = "mine.npz"', 'name = "mine.npz"\nlabels = 2'))
    one_message(call("run", study, "--out", tmp_path / "out"), 2, *words)
    assert not list((tmp_path / "store").rglob("*.safetensors")), "refused only after training"


# ---------------------------------------------------------------- exit 4: the machine


def test_a_folder_that_cannot_be_written(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("a file, and no folder")
    study = arrays(tmp_path, *images())
    one_message(call("run", study, "--out", tmp_path / "file" / "out"), 4, "cannot be written", "--out")
    one_message(
        call("run", study, "--out", tmp_path / "out", "--store", tmp_path / "file" / "store"), 4, "cannot be written", "--store"
    )
    one_message(call("plan", study, "--store", tmp_path / "file" / "store"), 4, "cannot be written", "--store")


def test_data_that_is_not_on_this_machine(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = arrays(tmp_path, *images(), ('"Arrays"\nname = "mine.npz"', '"Idx"\nname = "no-such-set"'))
    one_message(call("run", study, "--out", tmp_path / "out"), 4, "no-such-set", str(tmp_path))
    fashion = arrays(tmp_path, *images(), ('"Arrays"\nname = "mine.npz"', '"FashionMNIST"'))
    one_message(call("plan", fashion), 4, "fashion-mnist", "dataset-fashion-mnist")
    (tmp_path / "mine.npz").unlink()
    file = tmp_path / "study.toml"
    file.write_text(STUDY.replace('root = "{root}"', ""), encoding="utf-8")
    one_message(call("run", file, "--out", tmp_path / "out"), 4, "mine.npz", "FIREDOOR_DATA")


def test_a_device_that_is_not_there(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = arrays(tmp_path, *images())
    one_message(call("run", study, "--out", tmp_path / "out", "--device", "abacus"), 4, "abacus", "--device cpu")


def test_a_report_of_nothing(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("report", tmp_path / "nothing")
    assert code in (2, 4)
    assert out == ""
    assert "nothing" in err
    assert "Traceback" not in err


def test_doctor_says_what_there_is(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("doctor", "--json", "--store", tmp_path / "store")
    checks = {c["name"]: c for c in json.loads(out)["checks"]}
    assert all(c["ok"] or not c["needed"] for c in checks.values()) == (code == 0)
    assert code == 0


# ---------------------------------------------------------------- a whole run


def test_a_run_leaves_a_report_and_can_be_repeated(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    x, y = images(120)
    study = arrays(tmp_path, x, y, ("[attacks.FGSM]", "[attacks.FGSM]\n[attacks.SignNoise]"))
    out = tmp_path / "out"
    code, printed, err = call("run", study, "--out", out, "--workers", 1, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(printed)
    assert [t["name"] for t in summary["targets"]] == ["t"]
    made = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {"study.toml", "matrix.nc", "report.html", "report.json", "report.md"} <= set(made)
    again = tmp_path / "again"
    assert call("run", study, "--out", again, "--workers", 1, "-q")[:2] == (0, "")
    assert (again / "matrix.nc").read_bytes() == made["matrix.nc"], "the same study gives the same bytes"
    assert call("report", out, "-q")[:2] == (0, "")
    assert (out / "report.json").read_bytes() == made["report.json"]
    written = call("plan", out / "study.toml", "--json")
    assert written[0] == 0, "the study that a run leaves must be one that can be run"
    assert sum(r["to_do"] for r in json.loads(written[1])["rows"] if r["work"] in ("train", "craft transfers")) == 0


@pytest.mark.parametrize(
    ("given", "settled", "said"),
    [
        (["--json", "list", "attacks"], ["list", "--json", "attacks"], ""),
        (["list", "attacks", "--json"], ["list", "--json", "attacks"], ""),
        (
            ["--set", "a=1", "--out", "x", "run", "s.toml", "--set", "b=2"],
            ["run", "--set", "a=1", "--out", "x", "--set", "b=2", "s.toml"],
            "",
        ),
        (["--seed=3", "plan", "s.toml"], ["plan", "--seed=3", "s.toml"], ""),
        (["list", "attacks", "-q", "--store", "x"], ["list", "attacks"], "-q has no effect on list"),
        (["plan", "s.toml", "--device", "cpu"], ["plan", "s.toml"], "--device has no effect on plan"),
        (["--help"], ["--help"], ""),
        (["lst", "--json"], ["lst", "--json"], ""),
        ([], [], ""),
    ],
)
def test_shared_options_stand_anywhere(given: list[str], settled: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._settled(given) == settled
    assert said in capsys.readouterr().err


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 10.0, 70.0, 75.0, 140.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    show = cli._lines()
    for done in (0, 1, 13, 14, 27):
        show("craft and score", done, 40)
    assert capsys.readouterr() == ("", "craft and score: 13 of 40, 2 min left\ncraft and score: 27 of 40, 65 s left\n")


def test_a_reader_who_has_had_enough_is_no_problem_of_the_study() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "firedoor", "list", "attacks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1
