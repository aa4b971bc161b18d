"""ROBUST, TRANSFER-ONLY, MASKED, EXPOSED or NOT MEASURED: by written rules, from rates and symptoms only.

Bad news needs one witness, good news the whole list. The rules never see a name, a family or a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from firedoor.protocols import Symptom
from firedoor.stats import Estimate

__all__ = ["NEEDED_FOR_ROBUST", "VERDICTS", "Evidence", "Step", "judge", "state", "steps"]

VERDICTS = ("ROBUST", "TRANSFER-ONLY", "MASKED", "EXPOSED", "NOT MEASURED")


@dataclass(frozen=True)
class Evidence:
    """What the rules may see of one target under one threat. A loss is P[fooled by some cell | right on x], exact interval.

    transfer: cells of rungs S0 to S4; naive: the gradient as it stands; relaxed: through relax; all: these together, nulls included.
    """

    transfer: Estimate | None
    naive: Estimate | None
    relaxed: Estimate | None
    all: Estimate | None
    symptoms: tuple[Symptom, ...] = ()
    gradient_dead: bool = False  # A7 fails on the target as it stands
    worst_transfer: str = ""  # "rung, attack and source" that break it most
    worst_own: str = ""
    rungs: frozenset[str] = frozenset()
    unseen_sources: int = 0  # S0 or S2, held out
    architectures: int = 0  # families among them
    robust_sources: int = 0
    unseen_attacks: int = 0  # uncapped
    attack_families: int = 0
    stripped_needed: bool = False
    stripped_run: bool = True
    failed_cells: int = 0
    audit: frozenset[str] = field(default=frozenset())  # ids of the live tests that were run
    preflight_only: bool = False  # none of them ran an attack
    worst_of_k: Estimate | None = None  # share right in all of 20 resubmissions of the worst cell, random targets
    missing_reasons: tuple[str, ...] = ()


NEEDED_FOR_ROBUST = ("A7", "A8", "A9", "B5", "B7", "B11", "C1")
PREFLIGHT_ONLY = "the tests that attack the target (this audit was the preflight only)"
OF_THE_TARGET = ("A2", "A12", "E10", "E15")  # caps that concern every example, not only those made on the target itself


def state(loss: Estimate | None, bar: float) -> str:
    """holds: the upper bound is at most the bar; falls: the lower bound is over it; else open, or none where nothing was measured."""
    if loss is None or loss.n == 0:
        return "none"
    return "holds" if loss.high <= bar else "falls" if loss.low > bar else "open"


@dataclass(frozen=True)
class Step:
    """One rule of the table: what it asks, what was found, and the verdict with its reasons where it is the first that fits."""

    rule: int
    asks: str
    found: str
    verdict: str = ""
    reasons: tuple[str, ...] = ()


def judge(evidence: Evidence, bar: float) -> tuple[str, list[str]]:
    """The verdict and its reasons, by the first rule that matches."""
    last = steps(evidence, bar)[-1]
    return last.verdict, list(last.reasons)


def steps(evidence: Evidence, bar: float) -> list[Step]:
    """The rules in order, up to the first that fits: the chain from what was measured to the verdict."""
    chain: list[Step] = []
    for rule in (_rule_1, _rule_2, _rule_3, _rule_4, _rule_5, _rule_6, _rule_7):
        chain.append(rule(evidence, bar))
        if chain[-1].verdict:
            break
    last = chain[-1]
    missing = f"missing: {PREFLIGHT_ONLY}"
    if evidence.preflight_only and missing not in last.reasons:
        chain[-1] = replace(last, reasons=(*last.reasons, missing))
    return chain


def _rule_1(e: Evidence, bar: float) -> Step:
    asks = "is every cell void, or not run?"
    void = [f"void: {s.id} {s.name}: {s.text}" for s in e.symptoms if s.effect == "void" and s.status == "fail"]
    if void:
        return Step(1, asks, "yes, all of them are void", "NOT MEASURED", tuple(void))
    if state(e.transfer, bar) == state(e.all, bar) == "none":
        return Step(1, asks, "yes", "NOT MEASURED", e.missing_reasons or ("every cell is void or was not run",))
    return Step(1, asks, "some cells count")


def _rule_2(e: Evidence, bar: float) -> Step:
    asks = (
        "do all attacks together break it, the transferred ones not leave it standing, and its own gradient say that it is strong?"
    )
    u, t, n = state(e.all, bar), state(e.transfer, bar), state(e.naive, bar)
    own = "its own gradients are missing" if e.gradient_dead else f"its own gradients admit a loss of {_show(e.naive)}"
    found = f"all attacks: {u} at {_show(e.all)}; transfer: {t}; {own} ({n})"
    if not (u == "falls" and t != "holds" and (n == "holds" or e.gradient_dead)):
        return Step(2, asks, found)
    witness = e.worst_transfer if _at_least(e.transfer, e.relaxed) else e.worst_own
    reason = f"{own}, but {witness}; all attacks together turn {_show(e.all)}"
    return Step(2, asks, found, "MASKED", (reason, *(s.text for s in _masks(e))))


def _rule_3(e: Evidence, bar: float) -> Step:
    asks = "do transferred examples break it?"
    found = f"{state(e.transfer, bar)} at {_show(e.transfer)}"
    if state(e.transfer, bar) != "falls":
        return Step(3, asks, found)
    reason = f"{e.worst_transfer}; all transferred examples together turn {_show(e.transfer)}"
    return Step(3, asks, found, "EXPOSED", (reason,))


def _rule_4(e: Evidence, bar: float) -> Step:
    asks = "does it stand against everything, but with a sign of hidden gradients?"
    found = f"all attacks: {state(e.all, bar)}; signs: {', '.join(s.id for s in _masks(e)) or 'none'}"
    if state(e.all, bar) != "holds" or not _masks(e):
        return Step(4, asks, found)
    return Step(4, asks, found, "MASKED", tuple(f"{s.id} {s.name}: {s.text}" for s in _masks(e)))


def _rule_5(e: Evidence, bar: float) -> Step:
    asks = "does it stand against everything, with all evidence?"
    missing = _missing_transfer(e) + _missing_own(e)
    found = f"all attacks: {state(e.all, bar)}; missing: {', '.join(missing) or 'nothing'}"
    if state(e.all, bar) != "holds" or missing:
        return Step(5, asks, found)
    return Step(5, asks, found, "ROBUST", (f"loses {_show(e.all)} at this eps to all these attacks together",))


def _rule_6(e: Evidence, bar: float) -> Step:
    asks = "does it stand against transferred examples, with all evidence for that?"
    missing = _missing_transfer(e)
    found = f"transfer: {state(e.transfer, bar)} at {_show(e.transfer)}; missing: {', '.join(missing) or 'nothing'}"
    if state(e.transfer, bar) != "holds" or missing:
        return Step(6, asks, found)
    own = f"its own relaxed gradient turns {_show(e.relaxed)}" if e.relaxed else "white box: not measured"
    reason = f"holds against these transferred examples (loses {_show(e.transfer)}); {own}"
    return Step(6, asks, found, "TRANSFER-ONLY", (reason,))


def _rule_7(e: Evidence, bar: float) -> Step:
    reasons = []
    if state(e.transfer, bar) == "open":
        reasons.append(f"the loss to transfer, {_show(e.transfer)}, straddles the bar of {bar:.0%}: more examples would decide")
    elif state(e.transfer, bar) == "holds":
        reasons.append(f"holds so far (loses {_show(e.transfer)} to transfer), but good news needs the whole list")
    reasons += [f"missing: {m}" for m in _missing_transfer(e)]
    return Step(7, "otherwise", "nothing above fits", "NOT MEASURED", tuple(reasons))


def _masks(e: Evidence) -> list[Symptom]:
    return [s for s in e.symptoms if s.effect == "mask" and s.status == "fail"]


def _missing_transfer(e: Evidence) -> list[str]:
    """What the transfer evidence still needs."""
    missing = []
    if e.unseen_sources < 3:
        missing.append(f"3 sources of rung S0 or S2 that the defence never saw (got {e.unseen_sources})")
    if e.architectures < 2:
        missing.append(f"2 architecture families among them (got {e.architectures})")
    if e.robust_sources < 1:
        missing.append("a robust source among them")
    if e.unseen_attacks < 4 or e.attack_families < 3:
        missing.append(f"4 uncapped unseen attacks of 3 families (got {e.unseen_attacks} of {e.attack_families})")
    if not e.rungs & {"S3", "S4"}:
        missing.append("rung S3 or S4")
    if e.stripped_needed and not e.stripped_run:
        missing.append("the stripped target as a source")
    missing.extend(f"{s.id} {s.name}: {s.text}" for s in e.symptoms if _caps_transfer(s))
    if e.failed_cells:
        missing.append(f"{e.failed_cells} planned cells that failed")
    if e.preflight_only:
        missing.append(PREFLIGHT_ONLY)
    if e.worst_of_k is not None and not e.worst_of_k.value >= 0.5:  # NaN: too few draws to tell
        missing.append(f"a target that stands resubmission (right in all of 20 tries: {_show(e.worst_of_k)})")
    return missing


def _missing_own(e: Evidence) -> list[str]:
    """What the white-box evidence still needs."""
    missing = [t for t in NEEDED_FOR_ROBUST if t not in e.audit]
    if e.relaxed is None:
        missing.append("S5 through relax")
    bad = ("fail", "suspect", "void", "not_run")
    failed = [s.id for s in e.symptoms if s.effect in ("mask", "cap", "void") and s.status in bad]
    return missing + failed


def _caps_transfer(s: Symptom) -> bool:
    """A test of the target that leaves even transferred examples able to prove a break, never a defence."""
    return (s.id in OF_THE_TARGET and s.effect == "cap" and s.status in ("fail", "suspect")) or (
        s.effect == "void" and s.status == "suspect"
    )


def _at_least(a: Estimate | None, b: Estimate | None) -> bool:
    return a is not None and (b is None or a.value >= b.value)


def _show(e: Estimate | None) -> str:
    if e is None or e.n == 0:
        return "not measured"
    places = 0 if e.n < 100 else 1
    return f"{100 * e.value:.{places}f} % ({100 * e.low:.{places}f} to {100 * e.high:.{places}f}, n = {e.n})"
