"""Everything a report shows, derived from an output folder alone: no model, no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from firedoor import stats
from firedoor.errors import StoreError
from firedoor.evidence import evidence_of, own_pairs, transfer_pairs
from firedoor.matrix import Matrix, open_matrix
from firedoor.protocols import Symptom
from firedoor.symptoms import failed_at_home
from firedoor.verdict import NEEDED_FOR_ROBUST, steps

__all__ = ["build", "summarise"]

SCHEMA = 1
FULL_ONLY = ("B6", "B9", "B10", "B12", "B15", "C1")
COMMON_RUNGS = ("S0", "S1", "S2")  # faced by every target, so fair to compare on
Rate = dict[str, float] | None


def build(out: Path) -> dict[str, Any]:
    """The summary of an output folder. Errors: StoreError naming the file that is missing or damaged."""
    matrix = open_matrix(out / "matrix.nc")
    try:
        symptoms = {t: [_symptom(s) for s in found] for t, found in _read(out / "symptoms.json").items()}
    except (TypeError, AttributeError, KeyError) as error:
        raise StoreError(f"{out / 'symptoms.json'} is damaged ({type(error).__name__}). Run the study again.") from None
    rest = {name: _read(out / f"{name}.json") for name in ("costs", "gallery", "provenance")}
    for name, kind in (("costs", dict), ("gallery", list), ("provenance", dict)):
        inner = rest[name].values() if name == "costs" and isinstance(rest[name], dict) else []
        if not isinstance(rest[name], kind) or not all(isinstance(v, dict) for v in inner):
            raise StoreError(f"{out / f'{name}.json'} is damaged ({type(rest[name]).__name__}). Run the study again.")
    return summarise(matrix, symptoms, rest["costs"], rest["gallery"], rest["provenance"])


def summarise(
    matrix: Matrix, symptoms: dict[str, list[Symptom]], costs: dict[str, Any], gallery: list[Any], provenance: dict[str, str]
) -> dict[str, Any]:
    """report.json as a dict: every rate {value, low, high, n}, or None where it was not measured."""
    meta = matrix.meta
    targets = [_target(matrix, t, symptoms.get(t, []), costs.get(t, {})) for t in matrix.targets]
    _compare_with_control(matrix, targets)
    eps, norm = meta["threat"]["eps"], meta["threat"]["norm"]
    levels = math.floor(255 * eps + 1e-6)
    text = f"{norm}, eps = {levels}/255" if norm == "Linf" and abs(255 * eps - levels) < 1e-6 else f"{norm}, eps = {eps:g}"
    return {
        "schema_version": SCHEMA,
        "name": meta["name"],
        "description": meta["description"],
        "threat": {**meta["threat"], "levels": levels if norm == "Linf" else None, "text": text},
        "bar": meta["bar"],
        "n_evaluation": len(matrix.ids),
        "targets": targets,
        "cells": [
            _cell(matrix, s, a, t)
            for s in matrix.sources
            for a in matrix.attacks
            for t in matrix.targets
            if _planned(matrix, s, a, t)
        ],
        "sources": [_source(matrix, s) for s in meta["sources"]],
        "attacks": [{**a, "null": a["role"] == "null"} for a in meta["attacks"]],
        "gallery": gallery,
        "not_tested": _not_tested(matrix, symptoms),
        "provenance": {
            "data": f"{meta['data']['type']}, sha256 {meta['data']['digest'][:16]}",
            "evaluation ids": f"{len(matrix.ids)}, sha256 {meta['ids_digest'][:16]}",
            "seed": str(meta["seed"]),
            "control": meta["control"],
            "8-bit images": "yes" if meta["eight_bit"] else "no",
            **provenance,
        },
    }


def _target(matrix: Matrix, target: str, live: list[Symptom], cost: dict[str, Any]) -> dict[str, Any]:
    meta = matrix.meta
    facts = next(f for f in meta["targets"] if f["name"] == target)
    evidence = evidence_of(matrix, target, live)
    chain = steps(evidence, meta["bar"])
    pairs = transfer_pairs(matrix, target)
    worst = stats.worst_pair(matrix, target, pairs)
    rates = [r for p in pairs if (r := stats.transfer_rate(matrix, *p, target)) is not None]
    row: dict[str, Any] = {
        "name": target,
        "family": facts["family"],
        "exhibit": facts["exhibit"],
        "control": target == meta["control"],
        "stochastic": facts["stochastic"],
        "clean_accuracy": _rate(stats.clean_accuracy(matrix, target)),
        "clean_drop": None if target == meta["control"] else _rate(stats.clean_drop(matrix, target, meta["control"])),
        "worst_pair": _rate(worst[0] if worst else None),
        "worst_pair_at": {"source": worst[1][0], "attack": worst[1][1]} if worst else None,
        "worst_pair_split": _rate(stats.worst_pair_split(matrix, target, pairs)),
        "worst_case": _rate(stats.worst_case(matrix, target, pairs)),
        "max_transfer_rate": _rate(max(rates, key=lambda r: r.value) if rates else None),
        "noise_floor": _rate(stats.noise_floor(matrix, target)),
        "white_box_accuracy": _rate(stats.worst_case(matrix, target, own_pairs(matrix, target, False))),
        "naive_white_box_accuracy": _rate(stats.worst_case(matrix, target, own_pairs(matrix, target, True))),
        "verdict": chain[-1].verdict,
        "reasons": list(chain[-1].reasons),
        "chain": [{"rule": s.rule, "asks": s.asks, "found": s.found, "fits": bool(s.verdict)} for s in chain],
        "strongest": {"transferred": evidence.worst_transfer, "on the target itself": evidence.worst_own},
        "symptoms": [{**vars(s), "examples": list(s.examples)} for s in evidence.symptoms],
        "audit_passes": sum(s.passes for s in live),
        "rung_reached": _rung_reached(matrix, target),
        "train_multiple": cost.get("train_multiple"),
        "inference_multiple": cost.get("inference_multiple"),
        "train_seconds": cost.get("train_seconds"),
        "train_passes_multiple": cost.get("train_passes_multiple"),
        "inference_seconds_per_image": cost.get("inference_seconds_per_image"),
        "train_memory_bytes": cost.get("train_memory_bytes"),
        "inference_memory_bytes": cost.get("inference_memory_bytes"),
        "worst_of_k": None,
        "detector": _detector(matrix, target, pairs) if facts.get("abstains") else None,
        "against_control": None,
    }
    for part, seen in (("seen", True), ("held_out", False)):
        some = transfer_pairs(matrix, target, seen)
        found = stats.worst_pair(matrix, target, some)
        row[f"worst_pair_{part}"] = _rate(found[0] if found else None)
        row[f"worst_pair_at_{part}"] = {"source": found[1][0], "attack": found[1][1]} if found else None
        row[f"worst_case_{part}"] = _rate(stats.worst_case(matrix, target, some))
    if matrix.is_random(target) and worst is not None:
        draws = int(meta["draws"])
        row["worst_of_k"] = {str(k): _rate(stats.worst_of_k(matrix, target, worst[1], draws, k)) for k in (1, 5, 20)}
    return row


def _detector(matrix: Matrix, target: str, pairs: list[stats.Pair]) -> dict[str, Rate]:
    """What rejecting costs and brings: clean images rejected, and what stands if a rejected adversarial example counts as right."""
    worst = stats.worst_pair(matrix, target, pairs, lenient=True)
    return {
        "false_positives": _rate(stats.false_positives(matrix, target)),
        "lenient_worst_pair": _rate(worst[0] if worst else None),
        "lenient_white_box_accuracy": _rate(stats.worst_case(matrix, target, own_pairs(matrix, target, False), lenient=True)),
    }


def _compare_with_control(matrix: Matrix, rows: list[dict[str, Any]]) -> None:
    """Paired: right under every pair of rungs S0 to S2 that both faced, on the same examples. Holm over the targets."""
    control = matrix.meta["control"]
    compared = []
    for row in rows:
        if row["name"] == control:
            continue
        both_faced = set(transfer_pairs(matrix, control, rungs=COMMON_RUNGS))
        pairs = [p for p in transfer_pairs(matrix, row["name"], rungs=COMMON_RUNGS) if p in both_faced]
        mine, its = stats.survivors(matrix, row["name"], pairs), stats.survivors(matrix, control, pairs)
        if mine is None or its is None:
            continue
        gained, lost = int((mine & ~its).sum()), int((its & ~mine).sum())
        both, neither = int((mine & its).sum()), int((~mine & ~its).sum())
        difference = stats.newcombe(gained, lost, both, neither)
        row["against_control"] = {"difference": _rate(difference), "p": stats.mcnemar(gained, lost), "gained": gained, "lost": lost}
        compared.append(row["against_control"])
    for found, p in zip(compared, stats.holm([c["p"] for c in compared]), strict=True):
        found["p_holm"] = p


def _cell(matrix: Matrix, source: str, attack: str, target: str) -> dict[str, Any]:
    fact = next(a for a in matrix.meta["attacks"] if a["name"] == attack)
    seen_sources = {s["name"] for s in matrix.meta["sources"] if s["seen"]}
    right = matrix.right(source, attack, target)
    null = fact["role"] == "null"
    status, reason = ("", "") if null or right is None else failed_at_home(matrix, source, attack, target)
    return {
        "source": source,
        "attack": attack,
        "target": target,
        "transfer_rate": _rate(stats.transfer_rate(matrix, source, attack, target)),
        "robust_accuracy": _rate(stats.robust_accuracy(matrix, source, attack, target)),
        "chained_transfer_rate": None if null else _rate(stats.chained_transfer_rate(matrix, source, attack, target)),
        "void": status == "void",
        "capped": status == "capped",
        "reason": reason or (matrix.reason(source, attack, target) if right is None else None),
        "rung": matrix.meta["rungs"][source][target],
        "seen": source in seen_sources and bool(fact["seen"]),
    }


def _planned(matrix: Matrix, source: str, attack: str, target: str) -> bool:
    return matrix.right(source, attack, target) is not None or matrix.reason(source, attack, target) != "not part of the study"


def _source(matrix: Matrix, facts: dict[str, Any]) -> dict[str, Any]:
    right = matrix.source_clean(facts["name"])
    rungs = sorted(set(matrix.meta["rungs"][facts["name"]].values()))
    parts = [
        facts["architecture"],
        facts["family"] if facts["family"] != "none" else "",
        "several members" if facts["ensemble"] else "",
    ]
    parts.append("stand-in for a public model" if facts["public"] else "")
    return {
        **facts,
        "description": ", ".join(p for p in parts if p),
        "rung": " or ".join(rungs),
        "clean_accuracy": _rate(stats.mean(right.astype(float)) if right is not None else None),
    }


def _rung_reached(matrix: Matrix, target: str) -> str | None:
    ladder = ("S0", "S1", "S2", "S3", "S4", "S5")
    rungs = {
        matrix.meta["rungs"][s][target] for s in matrix.sources for a in matrix.attacks if matrix.right(s, a, target) is not None
    }
    reached = [r for r in ladder if r in rungs]
    return reached[-1] if reached else None


def _not_tested(matrix: Matrix, symptoms: dict[str, list[Symptom]]) -> list[str]:
    meta = matrix.meta
    rungs = {
        meta["rungs"][s][t]
        for s in matrix.sources
        for t in matrix.targets
        if any(matrix.right(s, a, t) is not None for a in matrix.attacks)
    }
    families = {a["family"] for a in meta["attacks"]}
    missing = [f"norms other than {meta['threat']['norm']}, and budgets other than eps = {meta['threat']['eps']:g}"]
    if "S0" not in rungs or not any(s["public"] for s in meta["sources"]):
        missing.append("rung S0: no public model, nor a stand-in for one")
    elif not any(s["public"] and s["type"] == "Imported" for s in meta["sources"]):
        missing.append("real public models: the S0 sources are stand-ins that this study trained")
    if "S4" not in rungs:
        missing.append("rung S4: a model stolen through the target's answers")
    if meta["threat"]["targeted"]:
        missing.append("whether an answer is the one that was wanted: any wrong answer counts")
    missing.extend(f"{f} attacks" for f in ("feature", "targeted", "generative", "query") if f not in families)
    years = [a["year"] for a in meta["attacks"] if a["year"]]
    if years:
        missing.append(f"attacks published after {max(years)}")
    missing.append("other training seeds of the targets: every sentence here is about these checkpoints")
    missing.append("changes that no norm bounds: rotations, patches, other weather, other cameras")
    missing.append("adaptive attacks written by hand against one defence: none tried beyond each wrapper's own relax")
    tried = {s.id for found in symptoms.values() for s in found}
    absent = [t for t in FULL_ONLY if t not in tried]
    if "C1" in absent:
        missing.append(f"tests {', '.join(absent)}, which only the full audit runs")
    ran = {s.id for found in symptoms.values() for s in found if s.status != "not_run"}
    left = [t for t in NEEDED_FOR_ROBUST if t not in ran]
    if left:
        missing.append(f"tests {', '.join(left)} of the full audit, without which no verdict can be ROBUST")
    return missing


def _rate(e: stats.Estimate | None) -> Rate:
    if e is None or e.n == 0 or math.isnan(e.value):
        return None
    return {"value": e.value, "low": e.low, "high": e.high, "n": e.n}


def _symptom(fields: dict[str, Any]) -> Symptom:
    return Symptom(**{**fields, "examples": tuple(fields["examples"])})


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{file} is missing. Make it with `firedoor run STUDY.toml --out {file.parent}`.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read ({type(error).__name__}). Run the study again.") from None
