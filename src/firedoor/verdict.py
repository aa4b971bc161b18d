"""ROBUST, TRANSFER-ONLY, MASKED, EXPOSED or NOT MEASURED: by written rules, from rates and symptoms only.

Bad news needs one witness, good news the whole list. The rules never see a name, a family or a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from firedoor.protocols import Symptom
from firedoor.stats import Estimate

__all__ = ["VERDICTS", "Evidence", "judge", "state"]

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
    worst_of_k: Estimate | None = None  # share right in all of 20 resubmissions of the worst cell, random targets
    missing_reasons: tuple[str, ...] = ()


NEEDED_FOR_ROBUST = ("A7", "A8", "A9", "B5", "B7", "B11", "C1")
OF_THE_TARGET = ("A2", "A12", "E10", "E15")  # caps that concern every example, not only those made on the target itself


def state(loss: Estimate | None, bar: float) -> str:
    """holds: the upper bound is at most the bar; falls: the lower bound is over it; else open, or none where nothing was measured."""
    if loss is None or loss.n == 0:
        return "none"
    return "holds" if loss.high <= bar else "falls" if loss.low > bar else "open"


def judge(evidence: Evidence, bar: float) -> tuple[str, list[str]]:
    """The verdict and its reasons, by the first rule that matches."""
    t, u, n = state(evidence.transfer, bar), state(evidence.all, bar), state(evidence.naive, bar)
    looks_strong = n == "holds" or evidence.gradient_dead
    masks = [s for s in evidence.symptoms if s.effect == "mask" and s.status == "fail"]
    void = [s for s in evidence.symptoms if s.effect == "void" and s.status == "fail"]
    if void:
        return "NOT MEASURED", [f"void: {s.id} {s.name}: {s.text}" for s in void]
    if t == "none" and u == "none":
        return "NOT MEASURED", list(evidence.missing_reasons) or ["every cell is void or was not run"]
    if u == "falls" and t != "holds" and looks_strong:
        own = (
            "its own gradients are missing"
            if evidence.gradient_dead
            else f"its own gradients admit a loss of {_show(evidence.naive)}"
        )
        witness = evidence.worst_transfer if _at_least(evidence.transfer, evidence.relaxed) else evidence.worst_own
        together = f"all attacks together turn {_show(evidence.all)}"
        return "MASKED", [f"{own}, but {witness}; {together}", *(s.text for s in masks)]
    if t == "falls":
        return "EXPOSED", [f"{evidence.worst_transfer}; all transferred examples together turn {_show(evidence.transfer)}"]
    if u == "holds" and masks:
        return "MASKED", [f"{s.id} {s.name}: {s.text}" for s in masks]
    missing_transfer = _missing_transfer(evidence)
    missing_own = _missing_own(evidence)
    if u == "holds" and not missing_transfer and not missing_own:
        return "ROBUST", [f"loses {_show(evidence.all)} at this eps to all these attacks together"]
    if t == "holds" and not missing_transfer:
        own = f"its own relaxed gradient turns {_show(evidence.relaxed)}" if evidence.relaxed else "white box: not measured"
        return "TRANSFER-ONLY", [f"holds against these transferred examples (loses {_show(evidence.transfer)}); {own}"]
    reasons = []
    if t == "open":
        reasons.append(
            f"the loss to transfer, {_show(evidence.transfer)}, straddles the bar of {bar:.0%}: more examples would decide"
        )
    elif t == "holds":
        reasons.append(f"holds so far (loses {_show(evidence.transfer)} to transfer), but good news needs the whole list")
    return "NOT MEASURED", reasons + [f"missing: {m}" for m in missing_transfer]


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
