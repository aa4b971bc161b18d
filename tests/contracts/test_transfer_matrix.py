"""The transfer matrix between linear models, through the whole pipeline, against its closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from firedoor.attacks import SignNoise
from firedoor.contracts import transfer_matrix
from firedoor.contracts.transfer_matrix import THREATS, check, study_of
from firedoor.protocols import Access, Classifier, Semantics
from firedoor.threat import Threat


@dataclass(frozen=True)
class Nothing:
    threat: Threat

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    gradients: ClassVar[int] = 0
    queries: ClassVar[int] = 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return x.clone()


@dataclass(frozen=True)
class Noise(Nothing):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return SignNoise(self.threat)(model, x, y)


NORMS = ["Linf", pytest.param("L2", marks=pytest.mark.slow)]


@pytest.mark.parametrize("norm", NORMS)
def test_every_rate_lies_in_its_interval_of_the_closed_form(norm: str) -> None:
    cells, failures = check(norms=(norm,))
    assert cells >= 4 * 4 * 4, f"{cells} cells checked, needed 64 or more"
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("null", [Nothing, Noise])
def test_doing_nothing_and_noise_are_outside(null: type[Nothing], norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_matrix, "N", 1000)
    _, failures = check({"FGSM": null}, norms=(norm,))
    found = {text.split(": ")[1] for text in failures}
    missed = [f"{s}, FGSM, {t}" for s in ("tilted", "even") for t in ("tilted", "mixed", "even") if f"{s}, FGSM, {t}" not in found]
    assert not missed, f"{null.__name__} passes as an attack in the cells {missed}"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_corner_cases_are_in_the_table(norm: str) -> None:
    threat = THREATS[norm]
    study = study_of(threat)

    def lost(source: str, target: str) -> float:
        margin = transfer_matrix.Margin(study, target)
        return margin.lost(threat, transfer_matrix.weights_of(study.sources[source])) / margin.s

    assert lost("blind", "even") == 0, "w_t . sign w_s = 0"
    assert lost("opposite", "opposed") < 0, "w_s = -w_t helps the target"
    assert study.sources["tilted"] == study.targets["tilted"], "w_s = w_t"
    assert 0.2 < transfer_matrix.Margin(study, "even").turned(lost("even", "even") * transfer_matrix.Margin(study, "even").s) < 0.8
