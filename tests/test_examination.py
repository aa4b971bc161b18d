"""What the audit asks of each target, what it costs, and what a run writes down for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firedoor import spec
from firedoor.cells import counted
from firedoor.diagnostics.doubling import Doubling
from firedoor.diagnostics.grey_image import GreyImage
from firedoor.diagnostics.monotone import Monotone
from firedoor.diagnostics.one_step_overfit import OneStepOverfit
from firedoor.diagnostics.unbounded import Unbounded
from firedoor.examination import S5_ROW, examination, passes_of, sign_of
from firedoor.pipeline import Outcome, carry_out
from firedoor.plan import plan
from firedoor.protocols import Attack
from firedoor.store import FileStore
from firedoor.study import Study, for_detectors, from_table, load
from firedoor.verdict import NEEDED_FOR_ROBUST

ROOT = Path(__file__).parent.parent
TABLE = {
    "data": {"type": "Digits", "splits": {"train": 300, "evaluation": 30}},
    "threat": {"type": "Linf", "eps": "40/255"},
    "architecture": {"type": "MLP", "width": 32},
    "fit": {"epochs": 6, "optimiser": "adamw", "lr": 0.003},
    "sources": {"other": {"seed": 5}},
    "attacks": {"SignNoise": {}, "FGSM": {}},
    "white_box": {
        "PGD_cross_entropy": {"type": "PGD", "steps": 4, "keep": "best"},
        "PGD_margin": {"type": "PGD", "steps": 4, "objective": "margin", "keep": "best"},
        "undetected": {"type": "Iterated", "steps": 4, "keep": "best", "objective": {"type": "Undetected"}},
    },
    "targets": {
        "plain": {"seed": 1},
        "jpeg": {"type": "Wrapped", "model": "plain", "wrapper": {"type": "JPEG"}},
        "noise": {"type": "Wrapped", "model": "plain", "wrapper": {"type": "Noise", "n": 3}},
        "detector": {"type": "Wrapped", "model": "plain", "wrapper": {"type": "Squeezing", "threshold": 0.5}},
        "hardened": {"seed": 1, "fit": {"loss": {"type": "Madry", "attack": {"type": "PGD", "steps": 2}}}},
    },
}


@pytest.fixture(scope="module")
def study() -> Study:
    return from_table({**TABLE, "draws": 4})


@pytest.fixture(scope="module")
def outcome(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return carry_out(study, FileStore(tmp_path_factory.mktemp("store")), lambda *_: None)


def ids(of: Study, target: str) -> set[str]:
    return {type(t.diagnosis.test).__name__ for t in examination(of, target)}


@pytest.mark.parametrize("name", ["digits", "fashion"])
@pytest.mark.parametrize(("audit", "most"), [("quick", 2), ("full", 10)])
def test_the_tests_cost_at_most_so_many_times_the_targets_own_row(name: str, audit: str, most: float) -> None:
    shipped = replace(load(ROOT / "studies" / f"{name}.toml"), audit=audit)  # type: ignore[arg-type]
    costs = {t: passes_of(examination(shipped, t), 10_000) / S5_ROW for t in shipped.targets}
    assert max(costs.values()) <= most, costs


def test_the_passes_that_were_taken_are_counted_and_within_what_was_declared(study: Study, outcome: Outcome) -> None:
    n = len(study.data.split("evaluation"))
    for target in study.targets:
        for test, symptom in zip(examination(study, target), outcome.symptoms[target], strict=True):
            declared = test.diagnosis.test.passes(min(n, test.diagnosis.n))
            assert symptom.passes <= declared, f"{target}: {symptom.id} took {symptom.passes} passes and declared {declared}"
        assert sum(s.passes for s in outcome.symptoms[target]) > 1000, "the count is no constant zero"


def test_copies_and_backward_passes_are_counted() -> None:
    with counted(torch.nn.Linear(3, 2)) as (model, passes):
        model(torch.zeros(5, 3))
        model(torch.zeros(4, 3, requires_grad=True)).sum().backward()
    assert sum(passes) == 5 + 4 + 4
    with counted(lambda x: x * 2) as (model, passes):
        model(torch.zeros(5, 3))
    assert sum(passes) == 5


def test_plan_says_what_the_tests_cost(study: Study, tmp_path: Path) -> None:
    found = plan(study, str(tmp_path))
    assert set(found["audit"]) == set(study.targets)
    assert all(0 < times <= 2 for times in found["audit"].values())
    s3 = sum(row["seconds"] for row in found["rows"] if "S3" in row["work"])
    assert found["seconds_without_s3"] == pytest.approx(found["seconds"] - s3)
    assert s3 > 0


def test_a_full_audit_runs_all_that_robust_needs(study: Study) -> None:
    wanted = {"A7": "GradientPresent", "A8": "GradientRight", "A9": "QuantisedInput", "B5": "Convergence", "B7": "Unbounded"}
    wanted |= {"B11": "Doubling", "C1": "Active"}
    assert set(wanted) == set(NEEDED_FOR_ROBUST)
    assert set(wanted.values()) <= ids(replace(study, audit="full"), "plain")
    assert "Active" not in ids(study, "plain")


def test_a_preflight_runs_no_attack_and_takes_a_small_part_of_the_passes(study: Study) -> None:
    quick, few = study, replace(study, audit="preflight")
    for target in study.targets:
        names = ids(few, target)
        assert names < ids(quick, target), target
        assert {"EvalMode", "Randomised", "Probabilities", "GradientPresent"} <= names, target
        attacks = [a for t in examination(few, target) for a in spec.recipes_in(t.diagnosis.test) if isinstance(a, Attack)]
        assert not attacks, f"{target}: a preflight runs {attacks}"
        assert 20 * passes_of(examination(few, target), 100) < passes_of(examination(quick, target), 100), target
    views = {(t.view, t.note) for t in examination(few, "jpeg") if type(t.diagnosis.test).__name__ == "GradientPresent"}
    assert views == {("as it stands", True), ("relaxed", False)}, "a dead naive gradient is a note, a dead relaxed one counts"


def test_one_step_overfitting_is_asked_of_those_that_train_on_attacks(study: Study) -> None:
    assert "OneStepOverfit" in ids(study, "hardened")
    assert "OneStepOverfit" not in ids(study, "plain")


def test_what_hides_its_gradient_is_looked_at_twice_and_the_naive_view_is_a_note(study: Study, outcome: Outcome) -> None:
    views = {(t.view, t.note) for t in examination(study, "jpeg")}
    assert views == {("as it stands", False), ("as it stands", True), ("relaxed", False)}
    dead = [s for s in outcome.symptoms["jpeg"] if s.id == "A7"]
    assert [(s.name.split(", ")[1], s.effect, s.status) for s in dead] == [
        ("as it stands", "note", "fail"),
        ("relaxed", "mask", "pass"),
    ]
    assert {t.view for t in examination(study, "plain")} == {"as it stands"}


def test_jpeg_is_attacked_around_by_two_ways(outcome: Outcome) -> None:
    assert outcome.matrix.right("itself, identity", "PGD_margin", "jpeg") is not None
    assert outcome.matrix.right("itself, identity", "PGD_margin", "noise") is None
    assert "one way" in outcome.matrix.reason("itself, identity", "PGD_margin", "noise")


def test_the_attack_on_detectors_runs_on_detectors_alone(outcome: Outcome) -> None:
    assert outcome.matrix.right("itself", "undetected", "detector") is not None
    assert outcome.matrix.reason("itself", "undetected", "plain") == "the target is no detector"
    assert not outcome.failed


def test_sizes_of_changes_are_written_down(outcome: Outcome) -> None:
    sizes = outcome.matrix.meta["strength"]["other|FGSM|*"]
    assert 0.9 * 40 / 255 < sizes["linf"] <= 40 / 255 + 1e-6
    assert 0 < sizes["l2"] <= 8 * sizes["linf"] + 1e-6
    assert 0 < sizes["saturated"] < 1


def test_no_leak_is_found_where_there_is_none_and_a_planted_one_is(outcome: Outcome, tmp_path: Path) -> None:
    assert not any(outcome.matrix.meta["leaked"]["targets"].values())
    cut_otherwise = {"type": "Digits", "splits": {"train": 1000, "evaluation": 30, "seed": 9}}
    leaky = from_table(
        {
            **TABLE,
            "white_box": {"PGD": {"steps": 2, "keep": "best"}},
            "targets": {"plain": {"seed": 1}, "leaky": {"seed": 1, "data": cut_otherwise, "fit": {"epochs": 1}}},
        }
    )
    found = carry_out(leaky, FileStore(tmp_path / "store"), lambda *_: None).matrix.meta["leaked"]["targets"]
    assert found["plain"] == []
    assert 5 < len(found["leaky"]) <= 30


def test_steps_suit_the_budget_that_a_test_is_about(study: Study) -> None:
    """Twenty steps of the study's own budget would end long before the edge of the box."""
    for name in ("digits", "fashion"):
        of = replace(load(ROOT / "studies" / f"{name}.toml"), audit="full")
        tests = [test.diagnosis.test for test in examination(of, of.control)]
        attacks = [t.attack for t in tests if isinstance(t, Unbounded | GreyImage)]
        assert len(attacks) == 2
        for attack in attacks:
            assert attack.steps * attack.step_size >= 2 * attack.threat.eps, f"{name}: {attack}"
        monotone = next(t for t in tests if isinstance(t, Monotone))
        shares = {round(a.step_size / a.threat.eps, 9) for a in monotone.attacks}
        assert len(shares) == 1, "each budget has steps in proportion"


def test_the_tests_take_an_attack_of_steps_and_one_of_another_objective_whatever_the_order() -> None:
    fgsm, undetected = {"one_step": {"type": "FGSM"}}, {"undetected": TABLE["white_box"]["undetected"]}  # type: ignore[index]
    pgd = {k: v for k, v in TABLE["white_box"].items() if k != "undetected"}  # type: ignore[attr-defined]
    long = {"long": {"type": "PGD", "steps": 500, "restarts": 5, "keep": "best"}}
    for order in ({**fgsm, **undetected, **pgd}, {**pgd, **undetected, **fgsm}):
        of = from_table({**TABLE, "white_box": order})
        for target in ("plain", "jpeg", "noise"):
            (doubling,) = (t.diagnosis.test for t in examination(of, target) if isinstance(t.diagnosis.test, Doubling))
            assert [(a.steps, a.objective) for a in doubling.attacks] == [(4, "cross_entropy"), (4, "margin")]  # type: ignore[attr-defined]
            assert [a.steps for a in doubling.doubled] == [8, 8]  # type: ignore[attr-defined]
    of = from_table({**TABLE, "white_box": {**undetected, **pgd}})
    (doubling,) = (t.diagnosis.test for t in examination(of, "detector") if isinstance(t.diagnosis.test, Doubling))
    assert for_detectors(doubling.attacks[0]), "a detector is attacked as one"
    of = from_table({**TABLE, "white_box": {**long, **pgd}})
    (doubling,) = (t.diagnosis.test for t in examination(of, "plain") if isinstance(t.diagnosis.test, Doubling))
    assert doubling.attacks[0].gradients == 50


@pytest.mark.parametrize("audit", ["quick", "full"])
def test_long_attacks_do_not_make_the_tests_dear(audit: str) -> None:
    long = {
        f"long_{o}": {"type": "PGD", "steps": 500, "restarts": 5, "objective": o, "keep": "best"}
        for o in ("cross_entropy", "margin")
    }
    of = from_table({**TABLE, "audit": audit, "white_box": long})
    for target in of.targets:
        assert passes_of(examination(of, target), 512) <= {"quick": 2, "full": 10}[audit] * S5_ROW


def test_every_test_is_known_by_its_sign() -> None:
    tests = {type(t.diagnosis.test) for t in examination(from_table({**TABLE, "audit": "full"}), "noise")}
    assert {sign_of(t.diagnosis.test)[0] for t in examination(from_table(TABLE), "plain")} <= set("ABCE")
    assert len({sign_of(t.diagnosis.test) for t in examination(from_table({**TABLE, "audit": "full"}), "noise")}) == len(tests)


def test_one_step_overfitting_is_looked_for_at_the_eps_of_the_training() -> None:
    fast = {"type": "Fast", "step": 2, "guard": False, "threat": {"type": "Linf", "eps": "96/255"}}
    of = from_table({**TABLE, "targets": {"plain": {"seed": 1}, "overfit": {"seed": 1, "fit": {"loss": fast}}}})
    (test,) = (t.diagnosis.test for t in examination(of, "overfit") if isinstance(t.diagnosis.test, OneStepOverfit))
    assert {round(255 * a.threat.eps) for a in (test.one, test.many)} == {96}
    assert not [t for t in examination(of, "plain") if isinstance(t.diagnosis.test, OneStepOverfit)]
