"""What `firedoor explain` says is what was measured and what decided, and nothing that a hostile name could add."""

from __future__ import annotations

import numpy as np
import pytest

from firedoor.errors import SpecError
from firedoor.protocols import Symptom
from firedoor.report.explanation import explanation
from firedoor.report.summary import summarise
from reading_fakes import Attack, Draft, Source, Target

N = 200
ALL, NONE = np.ones(N, bool), np.zeros(N, bool)


def summary(name: str = "masked") -> dict:  # type: ignore[type-arg]
    """An undefended control, and a target whose own gradient finds nothing while transfer breaks it."""
    draft = Draft(
        y=np.arange(N) % 10,
        targets=(Target("undefended"), Target(name)),
        sources=(Source("mlp"),),
        attacks=(Attack("MI_FGSM"), Attack("PGD", role="white box")),
    )
    draft.fool("mlp", "MI_FGSM", "undefended", ALL)
    draft.fool("itself", "PGD", "undefended", ALL)
    draft.fool("mlp", "MI_FGSM", name, ALL)
    draft.fool("itself", "PGD", name, NONE)
    dead = Symptom(
        "A7",
        "gradient present, as it stands",
        "mask",
        "fail",
        "200 of 200 images give no gradient",
        1.0,
        0.01,
        N,
        examples=("e1", "e2"),
    )
    unran = Symptom("B7", "unbounded, as it stands", "mask", "not_run", "the model gets no image right")
    return summarise(draft.matrix(), {"undefended": [], name: [dead, unran]}, {}, [], {})


def test_the_chain_goes_from_what_was_measured_over_signs_and_rules_to_the_verdict() -> None:
    lines = explanation(summary(), "masked")
    text = "\n".join(lines)
    assert lines[0] == "masked: MASKED"
    order = ["Measured", "Signs that fired", "Not run", "Passed:", "Rules, in order", "MASKED, because"]
    places = [next(i for i, line in enumerate(lines) if line.startswith(word)) for word in order]
    assert places == sorted(places)
    assert "A7 gradient present, as it stands, fail: 200 of 200 images give no gradient [examples e1, e2]" in text
    assert "B7 unbounded, as it stands, not_run" in text
    assert "2. do all attacks" in text
    assert "YES" in text
    assert "3. " not in text, "no rule is asked after the one that decided"
    assert "MI_FGSM from 'mlp' (S2) turns 100% of its right answers" in text


def test_an_undefended_target_is_told_by_rule_3() -> None:
    lines = explanation(summary(), "undefended")
    rules = [line.strip() for line in lines if line.strip()[:2] in ("1.", "2.", "3.", "4.")]
    assert [("YES" in r) for r in rules] == [False, False, True]


def test_the_words_are_those_of_the_report() -> None:
    found = summary()
    row = next(t for t in found["targets"] if t["name"] == "masked")
    assert [s["rule"] for s in row["chain"]] == [1, 2]
    assert [s["fits"] for s in row["chain"]] == [False, True]
    assert all(any(reason in line for line in explanation(found, "masked")) for reason in row["reasons"])


def test_an_unknown_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"no target 'maskd'\. Did you mean 'masked'"):
        explanation(summary(), "maskd")


def test_a_name_cannot_write_to_the_terminal() -> None:
    hostile = "bad\x1b[31m\u202ename"
    assert not any(c in line for line in explanation(summary(hostile), hostile) for c in "\x1b\u202e")
