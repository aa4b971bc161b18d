"""The rules of the code, read from its syntax trees: layers, names, where randomness and printing may live, what is never called.

`violations(root)` judges any tree, so each rule is itself tested on planted offences.
"""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "firedoor"

ROOMS = {"architectures", "models", "data", "attacks", "defences", "diagnostics", "measures"}
LAYERS = [
    {
        "protocols",
        "threat",
        "losses",
        "spec",
        "seed",
        "guard",
        "compile",
        "catalogue",
        "errors",
        "craft",
        "files",
        "device",
        "memory",
        "intervals",
        "expectation",
        "members",
    },
    ROOMS,
    {
        "study",
        "tiers",
        "store",
        "matrix",
        "pipeline",
        "plan",
        "schema",
        "engines",
        "cells",
        "certificates",
        "costs",
        "gallery",
        "gather",
        "looks",
        "examination",
    },
    {"stats", "verdict", "evidence", "symptoms", "transfer_signs", "comparison_signs", "game", "report", "resampling"},
    {"audit", "harden", "gate", "sharing", "contracts", "validation", "certify", "doctor", "cli", "api", "__main__"},
]
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
READING = LAYERS[3] | {
    "matrix",
    "errors",
    "protocols",
    "catalogue",
    "files",
    "intervals",
}  # what the reading layer may import; none imports torch

BANNED_STEMS = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "handler", "factory"}
BANNED_CLASS = re.compile(r"(Manager|Handler|Factory|Utils?|Helpers?|Base)$")
RANDOM = re.compile(
    r"torch\.(rand|randn|randint|randperm|rand_like|randn_like|randint_like|normal|bernoulli|multinomial|poisson|manual_seed|seed"
    r"|Generator|random\..+|cuda\.manual_seed\w*)$|numpy\.random\..+|random\..+|os\.urandom$"
)
RANDOM_METHODS = {"uniform_", "normal_", "bernoulli_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
RANDOM_FILES = {"seed.py", "resampling.py", "contracts/state.py"}  # the last disturbs the global streams to see them put back
STATE = re.compile(
    r"(torch\.random\.[gs]et_rng_state|numpy\.random\.[gs]et_state|random\.[gs]etstate)$"
)  # kept and put back by guard.py
UNSAFE_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "yaml"}
UNSAFE_CALLS = re.compile(
    r"(eval|exec|compile|__import__|os\.system|os\.popen|tempfile\.mktemp|shutil\.unpack_archive|torch\.load|torch\.jit\.load"
    r"|torch\.export\.load|torch\.hub\..+)$"
)
PICKLE_BY_DEFAULT = {"numpy.load", "numpy.lib.format.read_array"}
UNSAFE_KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("verify", False), ("trust_remote_code", True)}
GEOMETRY = re.compile(r"(?:.*\.)?(clamp_?|clip_?|norm|vector_norm|matrix_norm)$")
SEVERAL_ENTRIES = {"attacks/nulls.py", "threat.py"}  # beside the aliases of attacks/named/
SEVERAL_ENTRIES |= {"models/trained.py", "models/wrapped.py"}  # a model, and what its `relax` makes of it


def violations(root: Path) -> list[str]:
    """Every broken rule under `root`, a package folder, as 'file:line: rule'."""
    return [
        f"{f.relative_to(root).as_posix()}:{line}: {rule}" for f in sorted(root.rglob("*.py")) for line, rule in _judge(f, root)
    ]


def _judge(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    place = file.relative_to(root)
    unit = place.parts[0].removesuffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if {p.removesuffix(".py") for p in place.parts} & BANNED_STEMS:
        yield 1, "a file or folder is named after what it does: say what idea lives there"
    if place.as_posix() != "__init__.py":
        if unit not in LAYER_OF:
            yield 1, f"{unit} is in no layer: add it to the table"
            return
        yield from _imports(tree, unit)
        yield from _public(tree, place)
    yield from _forbidden(tree, place)


def _imports(tree: ast.Module, unit: str) -> Iterator[tuple[int, str]]:
    layer = LAYER_OF[unit]
    for node in _at_run_time(tree):
        for name in _imported(node):
            if name.split(".")[0] == "torch" and unit in READING:
                yield node.lineno, f"{unit} reads results and must start without torch"
            if name.split(".")[0] != "firedoor":
                continue
            other = name.split(".")[1] if "." in name else "__version__"
            if other == "__version__":
                continue
            if LAYER_OF.get(other, 9) > layer:
                yield (
                    node.lineno,
                    f"{unit} (layer {layer}) imports {other} (layer {LAYER_OF.get(other, 'unknown')}), which is above it",
                )
            elif other in ROOMS and unit in ROOMS and other != unit:
                yield node.lineno, f"the room {unit} imports the room {other}"
            elif unit in LAYERS[3] and other not in READING:
                yield node.lineno, f"{unit} reads results and must not import {other}"


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only the type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _at_run_time(node)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["firedoor.(relative)"]  # write the full name
        return [f"firedoor.{a.name}" for a in node.names] if node.module == "firedoor" else [node.module or ""]
    return []


def _public(tree: ast.Module, place: Path) -> Iterator[tuple[int, str]]:
    if place.name != "__init__.py" and not ast.get_docstring(tree):
        yield 1, "a module says what lives here and why"
    entries = 0
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node) or ""
            if "Reference:" in text and (place.parts[0] in ROOMS or place.name == "threat.py"):
                entries += 1
                if not re.search(r"Family: [^.]+\.", text):
                    yield node.lineno, f"{node.name} has a Reference but no Family"
                if entries > 1 and place.as_posix() not in SEVERAL_ENTRIES and "named" not in place.parts:
                    yield node.lineno, f"{node.name} is the second published idea of this file: one each"
            yield from _signatures(node)


def _signatures(node: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[int, str]]:
    for f in node.body if isinstance(node, ast.ClassDef) else [node]:
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not f.name.startswith("_") or f.name in ("__call__", "__init__")
        ):
            named = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *([f.args.vararg] if f.args.vararg else [])]
            bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or f.returns is None:
                yield f.lineno, f"{f.name} is public and not annotated ({', '.join(bare) or 'its result'})"
            if f.args.kwarg:
                yield f.lineno, f"{f.name} takes **{f.args.kwarg.arg}: name the arguments"


def _forbidden(tree: ast.Module, place: Path) -> Iterator[tuple[int, str]]:
    short = {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in _aliases(tree, ast.Import)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            short |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if UNSAFE_IMPORTS & {name.split(".")[0] for name in _imported(node)}:
            yield node.lineno, f"unsafe import: {ast.unparse(node)}"
        if isinstance(node, ast.ClassDef) and BANNED_CLASS.search(node.name):
            yield node.lineno, f"{node.name} is named after what it does, not what it is"
        if isinstance(node, ast.FunctionDef) and node.name != "__post_init__":
            written = [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "object.__setattr__"]
            yield from ((n.lineno, "a recipe is frozen: compute, do not write") for n in written)
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "a bare except hides everything"
        if isinstance(node, ast.Call):
            yield from ((node.lineno, rule) for rule in _call(node, _dotted(node.func, short), place))


def _aliases(tree: ast.Module, kind: type[ast.Import]) -> list[ast.alias]:
    return [a for node in ast.walk(tree) if isinstance(node, kind) for a in node.names]


def _dotted(node: ast.expr, short: dict[str, str]) -> str:
    """`np.random.rand` as 'numpy.random.rand'; '?.rand' where the root is neither imported nor built in."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, short)}.{node.attr}"
    if isinstance(node, ast.Name):
        return short.get(node.id, node.id if hasattr(builtins, node.id) else "?")
    return "?"


def _call(node: ast.Call, name: str, place: Path) -> Iterator[str]:
    method = name.rsplit(".", 1)[-1]
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    drawn = RANDOM.match(name) or (isinstance(node.func, ast.Attribute) and method in RANDOM_METHODS and ".init." not in name)
    if drawn and place.as_posix() not in RANDOM_FILES and not (place.as_posix() == "guard.py" and STATE.match(name)):
        yield f"{name} draws or seeds outside seed.py"
    if name in ("print", "sys.stdout.write") and place.as_posix() != "cli.py":
        yield "only cli.py prints"
    if UNSAFE_CALLS.match(name) or method == "extractall" or (name in PICKLE_BY_DEFAULT and "allow_pickle" not in given):
        yield f"unsafe call: {name}"
    for keyword in node.keywords:
        if (keyword.arg, given.get(keyword.arg)) in UNSAFE_KEYWORDS or keyword.arg == "pickle_module":
            yield f"unsafe argument: {keyword.arg} of {name}"
        if keyword.arg == "autoescape" and given.get("autoescape") is not True:
            yield "autoescape must be True"
    if place.parts[0] == "attacks" and GEOMETRY.match(name):
        yield f"{name}: the geometry of norms and the box lives in threat.py"


# ---------------------------------------------------------------- the rules hold


def test_the_package_keeps_its_rules() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("firedoor", "torch pandas numpy"),
        ("firedoor.cli", "torch pandas"),
        ("firedoor.stats", "torch"),
        ("firedoor.report", "torch"),
    ],
)
def test_starting_up_is_light(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {forbidden.split()} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"import {module} pulls in {loaded}"


def test_the_docs_list_every_module_and_room() -> None:
    listed = (PACKAGE.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    units = [p.name for p in PACKAGE.glob("*.py") if p.name != "__init__.py"] + [
        f"{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py")
    ]
    missing = [u for u in sorted(units) if f"\n  {u} " not in listed]
    assert not missing, f"docs/architecture.md does not list {missing}"


# ---------------------------------------------------------------- each rule finds its offence

DOC = '"""What lives here."""\n'
PLANTED = {
    "upward": ("seed.py", "from firedoor.attacks import iterated\n", "which is above it"),
    "upward, inside a function": ("spec.py", "def f() -> None:\n    import firedoor.study\n", "which is above it"),
    "upward, from the package": ("guard.py", "from firedoor import cli\n", "which is above it"),
    "relative": ("study.py", "from . import store\n", "which is above it"),
    "room to room": ("attacks/a.py", "from firedoor.models.trained import Trained\n", "the room attacks imports the room models"),
    "reading imports the run": ("stats.py", "from firedoor.pipeline import run\n", "must not import pipeline"),
    "reading imports a noun with torch": ("report/page.py", "from firedoor.threat import Linf\n", "must not import threat"),
    "torch while reading": ("verdict.py", "def f() -> None:\n    import torch\n", "without torch"),
    "torch in the matrix": ("matrix.py", "from torch import Tensor\n", "without torch"),
    "no layer": ("plumbing.py", "", "in no layer"),
    "banned file": ("attacks/utils.py", "", "named after what it does"),
    "banned folder": ("attacks/common/a.py", "", "named after what it does"),
    "banned class": ("store.py", "class StoreManager: ...\n", "StoreManager is named"),
    "torch.rand": ("attacks/a.py", "import torch\nx = [torch.rand(3)]\n", "draws or seeds"),
    "numpy, aliased": ("attacks/a.py", "import numpy as n\nn.random.default_rng(0)\n", "draws or seeds"),
    "numpy, imported by name": ("pipeline.py", "from numpy.random import default_rng as d\nd(0)\n", "draws or seeds"),
    "random": ("pipeline.py", "def f() -> None:\n    import random\n    random.shuffle([])\n", "draws or seeds"),
    "in-place draw": ("defences/a.py", "def f(x: object) -> None:\n    x.normal_()\n", "draws or seeds"),
    "seeding": ("models/a.py", "from torch import manual_seed\nmanual_seed(0)\n", "draws or seeds"),
    "draws in guard": ("guard.py", "import random\nrandom.random()\n", "draws or seeds"),
    "print": ("pipeline.py", "def f() -> None:\n    print(1)\n", "only cli.py prints"),
    "pickle": ("store.py", "def f() -> None:\n    import pickle as p\n", "unsafe import"),
    "pickle by name": ("store.py", "from joblib import load\n", "unsafe import"),
    "torch.load": ("models/a.py", "import torch as t\nt.load('a', weights_only=True)\n", "unsafe call: torch.load"),
    "eval": ("spec.py", "eval('1')\n", "unsafe call: eval"),
    "exec": ("spec.py", "def f() -> None:\n    [exec('1')]\n", "unsafe call: exec"),
    "compile": ("spec.py", "compile('1', 'a', 'eval')\n", "unsafe call: compile"),
    "extractall": ("data/a.py", "import zipfile\nzipfile.ZipFile('a').extractall()\n", "unsafe call"),
    "shell": ("pipeline.py", "import subprocess\nsubprocess.run('a', shell=True)\n", "unsafe argument: shell"),
    "np.load": ("data/a.py", "import numpy as np\nnp.load('a')\n", "unsafe call: numpy.load"),
    "np.load, pickled": ("data/a.py", "from numpy import load\nload('a', allow_pickle=True)\n", "allow_pickle"),
    "weights_only": ("models/a.py", "def f(g: object) -> None:\n    g.read(weights_only=False)\n", "weights_only"),
    "autoescape": ("report/page.py", "import jinja2\njinja2.Environment(autoescape=jinja2.select_autoescape())\n", "autoescape"),
    "bare except": ("pipeline.py", "try:\n    pass\nexcept:\n    pass\n", "bare except"),
    "own geometry": ("attacks/parts/a.py", "def f(x: object) -> None:\n    x.clamp(0, 1)\n", "lives in threat.py"),
    "own norm": ("attacks/a.py", "import torch\ntorch.linalg.vector_norm(1)\n", "lives in threat.py"),
    "written recipe": (
        "study.py",
        "class A:\n    def __call__(self) -> None:\n        object.__setattr__(self, 'a', 1)\n",
        "frozen",
    ),
    "no family": ("attacks/a.py", 'class A:\n    """A.\n\n    Reference: B.\n    """\n', "no Family"),
    "two ideas": ("attacks/a.py", 2 * 'class A:\n    """A.\n\n    Family: f. Reference: B.\n    """\n', "second published idea"),
    "no annotation": ("pipeline.py", "def run(study) -> None: ...\n", "run is public and not annotated (study)"),
    "no annotation of the result": (
        "pipeline.py",
        "class A:\n    def f(self): ...\n",
        "f is public and not annotated (its result)",
    ),
    "kwargs": ("attacks/a.py", "class A:\n    def __call__(self, **more: int) -> None: ...\n", "takes **more"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_offence_is_found_alone(name: str, tmp_path: Path) -> None:
    place, code, wanted = PLANTED[name]
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(DOC + code)
    found = violations(tmp_path)
    assert found, "the offence was missed"
    assert all(wanted in f for f in found), found


def test_a_module_without_a_word_is_found(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("x = 1\n")
    assert violations(tmp_path) == ["pipeline.py:1: a module says what lives here and why"]


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    allowed = {
        "__init__.py": "import torch\nfrom firedoor.cli import main\n",
        "attacks/named/gradient.py": DOC + "import re\nfrom firedoor import seed\nfrom firedoor.attacks.iterated import Iterated\n"
        "re.compile('a')\nseed.uniform(1, 0, 1).clamp_min(0)\n"
        + 2
        * 'def A(eps: float) -> None:\n    """A.\n\n    Family: f. Year: 2018. Reference: B.\n    """\n',
        "protocols.py": DOC + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n",
        "stats.py": DOC + "from firedoor.matrix import Matrix\nimport numpy as np\nnp.load('a', allow_pickle=False)\n",
        "study.py": DOC + "class A:\n    def __post_init__(self) -> None:\n        object.__setattr__(self, 'a', 1)\n",
        "seed.py": DOC + "import torch\ntorch.manual_seed(0)\n",
        "guard.py": DOC + "import random\nrandom.setstate(random.getstate())\n",
        "models/a.py": DOC + "def f(model: object) -> None: ...\n" + "def _g(x):\n    x.eval()\n",
        "cli.py": DOC + "print(1)\nfrom firedoor.pipeline import run\n",
    }
    for place, code in allowed.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(code)
    assert violations(tmp_path) == []
