"""Suites of attacks by name: T0 for minutes and CI, T1 for a release, T2 for an audit. A new attack joins by one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firedoor import catalogue, spec
from firedoor.errors import SpecError
from firedoor.protocols import Attack, Dataset
from firedoor.threat import L2, Linf, Threat

__all__ = ["TIERS", "attacks_of", "listed"]

MI: dict[str, Any] = {"type": "MI_FGSM"}
Fields = Mapping[str, Any]
TRANSFER: dict[str, dict[str, Fields]] = {  # crafted on sources
    "T0": {
        "SignNoise": {},
        "UniformNoise": {},
        "ShuffledDelta": {"attack": MI},
        "FGSM": {},
        "I_FGSM": {},
        "MI_FGSM": {},
        "DI_FGSM": {"copies": 5},
        "TI_FGSM": {},
        "VMI_FGSM": {"n": 5},
        "BSR": {"copies": 5},
    },
    "T1": {
        "NI_FGSM": {},
        "SI_NI_FGSM": {},
        "VMI_FGSM": {"n": 20},
        "BSR": {"copies": 20},
        "SSA": {},
        "Admix": {},
        "PGN": {},
        "MEF": {},
        "ILPD": {},
        "FIA": {},
        "NAA": {},
        "BFA": {},
        "NI_SI_TI_DIM": {},
        "SVRE": {},
        "CWA": {},
    },
    "T2": {
        "VNI_FGSM": {},
        "MI_DI_TI_SI": {},
        "VMI_DI_TI": {},
        "OPS": {},
        "DeCoWA": {},
        "L2T": {},
        "AdaEA": {},
        "Generator": {},
        "Universal": {},
    },
}
OWN: dict[str, dict[str, Fields]] = {  # run on the target itself, through its relax
    "T0": {
        "APGD_CE": {},
        "APGD_margin": {"type": "APGD", "objective": "margin"},
    },
    "T1": {
        "PGD_restarts": {"type": "PGD", "steps": 50, "restarts": 5, "keep": "best"},
        "APGD_T": {},
        "FAB_T": {},
        "Square": {"queries": 1000},
    },
    "T2": {
        "Square": {"queries": 5000},
        "SPSA": {},
        "HopSkipJump": {},
        "CW": {},
        "FMN": {},
        "DDN": {},
        "DeepFool": {},
    },
}
TIERS = tuple(TRANSFER)
TARGETED: dict[str, Fields] = {"LogitTargeted": {}}
TWICE: dict[str, Any] = {"type": "PGD", "steps": 50, "restarts": 2, "keep": "best"}
COUNTED: dict[str, Fields] = {"PGD_CE": TWICE, "PGD_margin": {**TWICE, "objective": "margin"}}  # for L0, which APGD does not know


def attacks_of(
    tier: str, threat: Threat, data: Dataset, adjust: Mapping[str, Fields] | None = None
) -> tuple[dict[str, Attack], dict[str, Attack]]:
    """(attacks crafted on sources, attacks on the target itself) of a tier and those below it, under one threat.

    An attack that the threat does not suit (its norm, or its being targeted) is left out: a tier is what can be run. Under L0, where
    APGD is, PGD stands in for it from T0 on. `adjust`: fields laid over those of an entry. `data`: what attacks with a pool or a training set of their own take. Errors: SpecError for the tier.
    """
    if tier not in TIERS:
        raise SpecError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}.{catalogue.nearest(tier, TIERS)}")
    below = TIERS[: TIERS.index(tier) + 1]
    found: list[dict[str, Attack]] = []
    for table in (TRANSFER, OWN):
        wanted = {name: fields for t in below for name, fields in table[t].items()}
        if table is TRANSFER and threat.targeted:
            wanted |= TARGETED
        if table is OWN and threat.norm == "L0":
            wanted |= COUNTED
        built = {n: _built(n, {**f, **(adjust or {}).get(n, {})}, threat, data) for n, f in wanted.items()}
        found.append({n: a for n, a in built.items() if a is not None})
    return found[0], found[1]


def listed() -> list[dict[str, str | int]]:
    """What each tier adds to the one below, with gradients and queries per image as it sets them; under Linf, or else L2."""
    from firedoor.data.digits import Digits

    rows: list[dict[str, str | int]] = []
    for place, table in (("every source", TRANSFER), ("the target itself", OWN)):
        for tier in TIERS:
            for name, fields in table[tier].items():
                threats: tuple[Any, ...] = (Linf(8 / 255), L2(0.5))
                found = next(a for t in threats if (a := _built(name, fields, t, Digits())) is not None)
                rows.append({"tier": tier, "attack": name, "runs_on": place, "G": found.gradients, "queries": found.queries})
    return sorted(rows, key=lambda r: str(r["tier"]))


def _built(name: str, fields: Fields, threat: Threat, data: Dataset) -> Attack | None:
    """None where another threat would do."""
    try:
        attack = _under(name, fields, threat, data)
    except SpecError:
        choices: tuple[tuple[Any, bool], ...] = ((Linf, False), (L2, False), (Linf, True))
        for norm, targeted in choices:
            try:
                _under(name, fields, norm(threat.eps, targeted), data)
            except SpecError:
                continue
            return None
        raise
    return None if threat.targeted and not attack.semantics.targeted else attack


def _under(name: str, fields: Fields, threat: Threat, data: Dataset) -> Attack:
    attack: Attack = spec.from_value(Attack, {"type": name, **fields}, name, {"threat": threat, "data": data}, {})
    return attack
