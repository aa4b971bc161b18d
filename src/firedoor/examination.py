"""Which live tests a target goes through, quick or full, and with which attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from firedoor import catalogue, diagnostics, spec
from firedoor.attacks.named.gradient import FGSM, PGD
from firedoor.attacks.square import Square
from firedoor.cells import Diagnosis
from firedoor.models.wrapped import abstains, detects
from firedoor.protocols import Access, Attack, Diagnostic, Model, Symptom
from firedoor.study import Study, for_detectors
from firedoor.threat import Threat

__all__ = ["S5_ROW", "Test", "examination", "found_by", "passes_of", "sign_of"]

S5_ROW = 2 * 2 * 100 * 512  # passes of APGD-100 with cross-entropy and with the margin loss on 512 examples
FEW, SOME, MANY, MOST = 32, 64, 100, 256  # examples that a test looks at
QUERIES = 500
FEWEST, MOST_STEPS = 3, 50  # gradients of an attack: fewer leave nothing to double, and more are not taken here


@dataclass(frozen=True)
class Test:
    """One test of one view of a target. note: what it finds is printed, and has no effect, since the other view is the one that counts."""

    view: str
    diagnosis: Diagnosis
    note: bool = False


def examination(of: Study, name: str) -> list[Test]:
    """The tests of one target, in the order in which they are told: preflight, attack health, active, transfer.

    A preflight audit has those that run no attack and take at most some twenty passes of an image; quick and full have more.

    The target as it stands goes through all that needs no gradient. What asks for gradients is run on its relaxed view; where that is
    another model, the signs of the naive view are notes.
    """
    model = of.targets[name]
    relaxed = model.relax()
    hidden = relaxed != model
    found = [Test("as it stands", d) for d in _diagnoses(of, model, _preflight(of, model))]
    if of.audit == "preflight":
        found += [Test("as it stands", d, note=hidden) for d in _diagnoses(of, model, _gradient(of, declared=False))]
        return found + [Test("relaxed", d) for d in _diagnoses(of, relaxed, _gradient(of, declared=True)) if hidden]
    if hidden:
        found += [Test("as it stands", d, note=True) for d in _diagnoses(of, model, _naive(of))]
        found += [Test("relaxed", d) for d in _diagnoses(of, relaxed, _gradient(of, declared=True))]
    else:
        found += [Test("as it stands", d) for d in _diagnoses(of, model, _gradient(of, declared=False))]
    found += [Test("relaxed" if hidden else "as it stands", d) for d in _diagnoses(of, relaxed, _health(of, relaxed))]
    return found


def found_by(test: Test, symptom: Symptom) -> Symptom:
    """The symptom under the name of the view that it was found in."""
    return replace(symptom, name=f"{symptom.name}, {test.view}", effect="note" if test.note else symptom.effect)


def sign_of(test: Diagnostic) -> str:
    """The id that the test's own documentation begins with: A1, B11 ..."""
    return (type(test).__doc__ or "").partition(":")[0]


def passes_of(tests: list[Test], n: int) -> int:
    """Passes of one image through a target that its tests take, at most, on n evaluation images."""
    return sum(t.diagnosis.test.passes(min(n, t.diagnosis.n)) for t in tests)


def _diagnoses(of: Study, model: Model, tests: Iterator[tuple[Diagnostic, int]]) -> list[Diagnosis]:
    return [Diagnosis(test, model, of.data, n) for test, n in tests]


def _preflight(of: Study, model: Model) -> Iterator[tuple[Diagnostic, int]]:
    classes = len(of.data.classes)
    yield diagnostics.EvalMode(), FEW
    yield diagnostics.Randomised(declared=model.stochastic), SOME
    if not model.stochastic:
        yield diagnostics.BatchInvariance(), SOME
    yield diagnostics.Probabilities(), SOME
    yield diagnostics.OptimisationInForward(), FEW
    yield diagnostics.ClassCount(needed=2), FEW
    if not model.stochastic:  # noise drowns a picture of low contrast, so more contrast would look like the right range
        yield diagnostics.InputContract(), MOST
    yield diagnostics.Abstains(classes=classes, abstains=abstains(model)), SOME
    if of.audit != "preflight":
        yield diagnostics.Finite(_pgd(of), points=8), SOME


def _naive(of: Study) -> Iterator[tuple[Diagnostic, int]]:
    """What a specimen must show: signs of the gradient as it stands."""
    yield from _gradient(of, declared=False)
    yield diagnostics.UnstableLoss(), FEW
    yield diagnostics.Unbounded(_unbounded(of)), MANY
    yield diagnostics.OneStepBeatsMany(FGSM(_untargeted(of)), _pgd(of)), MANY


def _gradient(of: Study, declared: bool) -> Iterator[tuple[Diagnostic, int]]:
    """A7 to A9. A relaxed backward pass is not the derivative of its forward pass, and says so: A8 and A9 look at honest ones only."""
    yield diagnostics.GradientPresent(), MANY
    if not declared:
        if of.audit != "preflight":
            yield diagnostics.GradientRight(images=SOME), SOME
        yield diagnostics.QuantisedInput(), SOME


def _health(of: Study, relaxed: Model) -> Iterator[tuple[Diagnostic, int]]:
    own = _own(of, relaxed)
    pgd, fgsm = _pgd(of), FGSM(_untargeted(of))
    some = FEW if relaxed.stochastic else MANY
    yield diagnostics.Rounding(pgd), some
    yield diagnostics.SilentSuccess(own[0]), some
    yield diagnostics.Convergence(own[0], gain=0.05), some
    yield diagnostics.Unbounded(_unbounded(of)), some
    yield diagnostics.OneStepBeatsMany(fgsm, pgd), some
    yield diagnostics.Doubling(own, tuple(_doubled(a) for a in own)), some
    if of.threat.norm in ("Linf", "L2"):
        yield diagnostics.GradientFree(Square(_untargeted(of), queries=QUERIES), own), some
    trained_at = _threat_of_training(relaxed, _untargeted(of))
    if trained_at is not None:
        yield diagnostics.OneStepOverfit(FGSM(trained_at), PGD(trained_at, steps=50, keep="best")), MANY
    yield diagnostics.NearCopy(pgd), some
    if of.audit == "full":
        yield diagnostics.UnstableLoss(), SOME
        yield diagnostics.Monotone(tuple(_within(replace(_untargeted(of), eps=of.threat.eps * k / 5)) for k in range(1, 6))), MANY  # type: ignore[type-var]
        yield diagnostics.GreyImage(_within(_grey(of))), MANY
        yield diagnostics.RandomSearch(own), MANY
        if relaxed.stochastic:
            yield (
                diagnostics.LuckyDraw(PGD(_untargeted(of), steps=20)),
                MANY,
            )  # the last step: the best of noisy steps is lucky by choice
        yield diagnostics.Active(own, inner=499), MOST


def _own(of: Study, model: Model) -> tuple[Attack, ...]:
    """Two of the white-box attacks that the study judges this target with: the first by gradients, and the first of another objective.

    Not those of a step or two, nor those that only a detector understands. Of longer ones 50 steps are taken: the
    tests ask what an attack leaves undone, and are to cost no more than twice (quick) or ten times (full) the target's own row.
    """
    if of.threat.targeted:
        return (_pgd(of),)
    found = [
        _short(a)
        for a in of.white_box.values()
        if a.needs is Access.GRADIENTS
        and a.semantics.transfers
        and a.gradients >= FEWEST
        and (detects(model) or not for_detectors(a))
    ]
    if not found:
        return (_pgd(of),)
    other = [a for a in found[1:] if getattr(a, "objective", None) != getattr(found[0], "objective", None)]
    return (found[0], *other[:1])


def _short(attack: Attack) -> Attack:
    """One restart, and 50 steps at most."""
    has = {f.name for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
    if "restarts" in has:
        attack = replace(attack, restarts=1)  # type: ignore[type-var]
    if "steps" in has and attack.gradients > MOST_STEPS:
        attack = replace(attack, steps=max(1, getattr(attack, "steps") * MOST_STEPS // attack.gradients))  # type: ignore[type-var]  # noqa: B009
    return attack


def _threat_of_training(model: Model, study: Threat) -> Threat | None:
    """The largest budget, of the study's norm, that some network in it was fitted against; None if none was."""
    losses = {e.name for e in catalogue.entries("losses") if "adversarial training" in e.family}
    fitted = [r for r in spec.recipes_in(model) if type(r).__name__ in losses]
    threats = [t for loss in fitted for t in spec.recipes_in(loss) if isinstance(t, type(study)) and not t.targeted]
    if not fitted:
        return None
    return max(threats, key=lambda t: t.eps, default=study)


def _untargeted(of: Study) -> Threat:
    return replace(of.threat, targeted=False)  # type: ignore[type-var]


def _pgd(of: Study) -> Attack:
    return _within(_untargeted(of))


def _within(threat: Threat) -> Attack:
    """Steps of a size that suits this budget."""
    return PGD(threat, steps=20, keep="best")


def _doubled(attack: Attack) -> Attack:
    """Twice the steps and twice the restarts, where it has them."""
    has = {f.name for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
    more = ("steps", "restarts") if getattr(attack, "keep", "") == "best" or "keep" not in has else ("steps",)
    return replace(attack, **{name: 2 * getattr(attack, name) for name in more if name in has})  # type: ignore[type-var]


def _unbounded(of: Study) -> Attack:
    """Twenty steps with the whole pixel box to move in."""
    d = 1
    for side in of.data.shape:
        d *= side
    largest: dict[str, Any] = {"Linf": 1.0, "L2": d**0.5, "L1": float(d), "L0": float(d)}
    return _within(replace(_untargeted(of), eps=largest[of.threat.norm]))  # type: ignore[type-var]


def _grey(of: Study) -> Threat:
    """A budget that reaches the grey image from everywhere."""
    d = 1
    for side in of.data.shape:
        d *= side
    halves: dict[str, Any] = {"Linf": 0.5, "L2": 0.5 * d**0.5, "L1": 0.5 * d, "L0": float(d)}
    return replace(_untargeted(of), eps=halves[of.threat.norm])  # type: ignore[type-var]
