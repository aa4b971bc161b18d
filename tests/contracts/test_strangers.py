"""Files that would get through a careless judge: each must break the clause that names its defect, or be refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import firedoor
from firedoor.contracts import strength, victims
from firedoor.contracts.attack import judged
from firedoor.contracts.check import CORE, found_in, not_judged, run_check
from firedoor.contracts.subject import Subject, Verdict
from firedoor.protocols import Access, Attack, Semantics
from firedoor.threat import Threat

HEAD = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from firedoor import seed
from firedoor.attacks.door import check_inputs
from firedoor.errors import SpecError
from firedoor.protocols import Access, Returned, Semantics, Stops
from firedoor.threat import Threat


@dataclass(frozen=True)
class Stranger:
    """An attack.

    Family: {family}. Year: 2025. G: 0. Tier: T2.
    Reference: nobody.
    """

    threat: Threat
    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics({semantics})
    gradients: ClassVar[int] = {gradients}
    queries: ClassVar[int] = {queries}
{body}
'''
LAZY_IN_ONE_NORM = """
    def __post_init__(self):
        if self.threat.norm != "NORM":
            raise SpecError("Stranger: the norm must be NORM. Change it.")

    def __call__(self, model, x, y):
        return x.clone()
"""
VECTORS_ONLY = """
    def __call__(self, model, x, y):
        check_inputs(x, y)
        if x.dim() != 2:
            raise SpecError("Stranger needs vectors. Flatten the images.")
        return x.clone()
"""
LAZY_ON_VECTORS = """
    def __call__(self, model, x, y):
        if x.dim() == 2 or len(x) == 0:
            return x.clone()
        leaf = x.detach().requires_grad_()
        g = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        return self.threat.step(x, x, g, self.threat.eps)
"""
NOISE = """
    def __call__(self, model, x, y):
        with seed.own_streams(x, "stranger"):
            return self.threat.step(x, x, seed.normal(x), self.threat.eps)
"""
FIRST_SUCCESS = """
    def __call__(self, model, x, y):
        x_adv = x.clone()
        first = None
        for _ in range(20):
            leaf = x_adv.detach().requires_grad_()
            logits = model(leaf)
            g = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)[0]
            right = logits.argmax(1) == y
            first = right if first is None else first  # those that were wrong before are attacked to the end
            going = (right | ~first | STUBBORN).view(-1, *[1] * (x.dim() - 1))
            x_adv = torch.where(going, self.threat.step(x_adv, x, g, self.threat.eps / 20), x_adv).detach()
        return x_adv
"""


def written(folder: Path, body: str, family: str = "gradient", semantics: str = "", gradients: int = 1, queries: int = 0) -> Path:
    file = folder / "stranger.py"
    file.write_text(HEAD.format(family=family, semantics=semantics, gradients=gradients, queries=queries, body=body))
    return file


def loaded(file: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"stranger_{file.stem}", file)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def verdict(file: Path) -> Verdict:
    """Clause 23 on the first attack of the file, in this process: the child's start takes seconds."""
    (found,) = judged(found_in(loaded(file))[0], [23])
    return found


@pytest.mark.parametrize("norm", ["L2", "L1", "L0"])
def test_one_that_takes_a_single_norm_and_does_nothing(tmp_path: Path, norm: str) -> None:
    found = verdict(written(tmp_path, LAZY_IN_ONE_NORM.replace("NORM", norm)))
    assert found.outcome == "fail"
    assert f"{norm}, eps at half the distance: clean examples returned, of " in found.text


@pytest.mark.parametrize("body", [VECTORS_ONLY, LAZY_ON_VECTORS], ids=["vectors only", "images as they should be"])
def test_one_that_does_nothing_to_vectors(tmp_path: Path, body: str) -> None:
    found = verdict(written(tmp_path, body))
    assert found.outcome == "fail"
    assert "Linf, vectors, eps at half the distance: clean examples returned" in found.text


def test_whoever_refuses_to_be_judged_is_refused_with_the_list(tmp_path: Path) -> None:
    """Nothing fails here: images are refused in words of their own, and vectors are attacked as they should be."""
    flat = LAZY_ON_VECTORS.replace("if x.dim() == 2 or len(x) == 0:\n            return x.clone()", PICKY)
    file = written(tmp_path, flat)
    assert verdict(file).outcome == "pass"
    verdicts = tuple(judged(found_in(loaded(file))[0]))
    assert not [v for v in verdicts if v.outcome == "fail" and v.clause in CORE]
    assert {v.clause for v in not_judged(verdicts)} >= {1, 2, 3, 4, 7, 11, 12, 21}
    verdicts = [Verdict(c, "Stranger", "skip", "refused by SpecError: no images") for c in (2, 9, 4)]
    assert [v.clause for v in not_judged(verdicts)] == [2, 4], "clause 9 may be skipped by what an attack declares"


PICKY = """check_inputs(x, y)
        if len(x) == 0:
            return x.clone()
        if x.dim() != 2:
            raise SpecError("Stranger needs vectors. Flatten the images.")"""


def test_the_table_says_which_clauses_were_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = (Verdict(4, "Mine", "skip", "refused by SpecError: no images"), Verdict(11, "Mine", "pass", "fine"))
    monkeypatch.setattr("firedoor.contracts.check.check", lambda file, name: verdicts)
    assert run_check(tmp_path / "mine.py", as_json=False) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Mine is not shown to keep the contract: it was not judged by 4." in shown
    assert "keeps the contract." not in shown
    assert run_check(tmp_path / "mine.py", as_json=True) == 1
    (told,) = json.loads(capsys.readouterr().out)["attacks"]
    assert (told["first_broken"], told["not_judged"]) == (None, [4])


@pytest.mark.parametrize("family", ["null", "universal", "generative"])
def test_what_a_stranger_calls_himself_excuses_no_noise(tmp_path: Path, family: str) -> None:
    found = verdict(written(tmp_path, NOISE, family, semantics="stochastic=True", gradients=0))
    assert found.outcome == "fail"
    assert "mean fall of the margin" in found.text


def test_a_null_of_the_project_is_one() -> None:
    subjects = found_in(loaded(Path(firedoor.__file__).parent / "attacks" / "nulls.py"))
    assert {s.name for s in subjects} == {"SignNoise", "UniformNoise", "ShuffledDelta"}
    for subject in subjects:
        (found,) = judged(subject, [23])
        assert found.outcome == "pass", found.text


def declared(returned: str, stops: str) -> str:
    return f"returned=Returned.{returned}, stops=Stops.{stops}, targeted=False"


@pytest.mark.parametrize("returned", ["LAST", "BEST_LOSS"])
def test_one_that_stops_at_its_first_success_must_say_so(tmp_path: Path, returned: str) -> None:
    body = FIRST_SUCCESS.replace("STUBBORN", "False")
    found = verdict(written(tmp_path, body, semantics=declared(returned, "NEVER"), gradients=20))
    assert found.outcome == "fail"
    assert f"as it is declared to go on ({returned}, NEVER)" in found.text


def test_one_that_goes_on_must_not_say_that_it_stops(tmp_path: Path) -> None:
    body = FIRST_SUCCESS.replace("STUBBORN", "True")
    found = verdict(written(tmp_path, body, semantics=declared("FIRST_SUCCESS", "EXAMPLE"), gradients=20))
    assert found.outcome == "fail"
    assert "as it is declared to stay at the boundary (FIRST_SUCCESS)" in found.text


@pytest.mark.parametrize(("stubborn", "said"), [("False", ("FIRST_SUCCESS", "EXAMPLE")), ("True", ("LAST", "NEVER"))])
def test_both_may_stand_if_they_say_what_they_do(tmp_path: Path, stubborn: str, said: tuple[str, str]) -> None:
    body = FIRST_SUCCESS.replace("STUBBORN", stubborn)
    found = verdict(written(tmp_path, body, semantics=declared(*said), gradients=20))
    assert found.outcome == "pass", found.text


def test_an_output_without_a_label_fools_nobody() -> None:
    class Blank:
        needs, semantics, gradients, queries = Access.GRADIENTS, Semantics(), 1, 0

        def __init__(self, threat: Threat) -> None:
            self.threat = threat

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(x, torch.nan)

    def make(threat: Threat, *_: object) -> Attack:
        return Blank(threat)

    x, y = victims.images(5), torch.tensor([0, 1, 2, 3, 0])
    assert not strength._fooled(Subject("Blank", make), victims.CNN(), x, y, 0.1, {}).any()
