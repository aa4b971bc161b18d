"""A summary of the size of the demo study, made up but consistent, with hostile names among the targets."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from typing import Any

import pytest

from firedoor.report import page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "a|b`c*d_e[f](javascript:alert(1))",
    "right\u202eleft \x1b[31m \ud800 \u2028",
)
FAMILIES = (
    "none",
    "adversarial training",
    "ensemble",
    "distillation",
    "input transformation",
    "randomisation",
    "regularisation",
    "gradient masking",
)
NAMES = (
    "undefended",
    "low-lr",
    "PGD-AT",
    "TRADES",
    "MART",
    "PubDef",
    "EnsembleAT",
    "DVERGE",
    "TRS",
    "GAL",
    "DefensiveDistillation",
    "RSLAD",
    "JPEG-75",
    "bit-depth-3",
    "ResizePad",
    "GaussianNoise",
    "JacobianPenalty",
)
ATTACKS = (
    ("FGSM", "gradient", 2014, 1),
    ("I_FGSM", "gradient", 2016, 10),
    ("MI_FGSM", "momentum", 2018, 10),
    ("NI_FGSM", "momentum", 2019, 10),
    ("DI_FGSM", "input transformation", 2019, 10),
    ("TI_FGSM", "input transformation", 2019, 10),
    ("VT_FGSM", "variance", 2021, 210),
    ("Admix", "input transformation", 2021, 150),
    ("SSA", "spectrum", 2022, 200),
    ("BSR", "input transformation", 2024, 200),
    ("sign noise", "noise", None, 0),
    ("shuffled delta", "noise", None, 10),
)
SOURCES = ("resnet-A", "resnet-B", "vgg", "mixer", "vit", "mlp", "slightly-robust", "ensemble-of-3")


def png(seed: int, side: int = 12) -> str:
    """A tiny grey PNG as base64."""
    draw = random.Random(seed)
    rows = b"".join(b"\0" + bytes(draw.randrange(256) for _ in range(side)) for _ in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    blob = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(blob).decode()


def rate(value: float, n: int = 1000) -> dict[str, Any]:
    half = 1.96 * (max(value * (1 - value), 0.0004) / n) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def make_summary(hostile: tuple[str, ...] = HOSTILE) -> dict[str, Any]:
    """22 targets, 8 sources, 12 attacks, about 2,200 cells, 30 examples; the hostile strings also stand in every free text."""
    draw = random.Random(7)
    names = [*NAMES, *(f"{h}" for h in hostile)]
    bad = hostile[0] if hostile else "text"
    attacks = [
        {
            "name": name,
            "family": family,
            "year": year,
            "G": G,
            "seen": i < 5,
            "null": family == "noise",
            "reference": f"Somebody et al. {year}, arXiv:0000.00000." if year else None,
            "role": "null" if family == "noise" else "transfer",
        }
        for i, (name, family, year, G) in enumerate(ATTACKS)
    ]
    attacks.append(
        {
            "name": "PGD-EOT",
            "family": "white box",
            "year": 2018,
            "G": 400,
            "seen": False,
            "null": False,
            "reference": bad,
            "role": "white box",
        }
    )
    sources = [
        {
            "name": s,
            "description": f"{s}, trained by this study. {bad}",
            "rung": f"S{i % 5}",
            "seen": i < 3,
            "clean_accuracy": rate(0.97),
        }
        for i, s in enumerate(SOURCES)
    ]
    targets, cells = [], []
    for i, name in enumerate(names):
        strength = 0.0 if i < 2 else draw.uniform(0.1, 0.9)
        clean = 0.985 - 0.12 * strength * draw.random()
        found = []
        for j, s in enumerate(SOURCES):
            for k, a in enumerate(attacks[:-1]):
                null = a["null"]
                hit = (
                    0.03 if null else min(0.99, max(0.0, (0.35 + 0.05 * k) * (1 - 0.8 * strength) + 0.03 * j + draw.gauss(0, 0.04)))
                )
                void, missing, capped = draw.random() < 0.02, draw.random() < 0.02, draw.random() < 0.05
                n = 40 if s == "mlp" else round(1000 * clean)
                cell = {
                    "source": s,
                    "attack": a["name"],
                    "target": name,
                    "transfer_rate": None if missing else rate(hit, n),
                    "robust_accuracy": None if missing else rate(clean * (1 - hit)),
                    "chained_transfer_rate": None if missing else rate(min(1.0, hit * 1.05), n),
                    "void": void and not missing,
                    "capped": capped and not void and not missing,
                    "reason": f"needs GRADIENTS, got LABELS {bad}" if missing else "not above noise at home" if void else None,
                    "rung": "null" if null else sources[j]["rung"],
                    "seen": sources[j]["seen"] and a["seen"],
                }
                cells.append(cell)
                if not (null or void or missing):
                    found.append(cell)
        white = clean * (0.75 * strength if i % 3 == 0 else 0.02)
        for rung, value in (("S5", white), ("naive", min(clean, white * 1.3))):
            cells.append(
                {
                    "source": name,
                    "attack": "PGD-EOT",
                    "target": name,
                    "transfer_rate": rate(1 - value / clean),
                    "robust_accuracy": rate(value),
                    "chained_transfer_rate": None,
                    "void": False,
                    "capped": False,
                    "reason": None,
                    "rung": rung,
                    "seen": False,
                }
            )
        worst = min(found, key=lambda c: c["robust_accuracy"]["value"])
        held = min((c for c in found if not c["seen"]), key=lambda c: c["robust_accuracy"]["value"])
        seen = min((c for c in found if c["seen"]), key=lambda c: c["robust_accuracy"]["value"])
        at = worst["robust_accuracy"]["value"]
        exhibit = i % 8 == 7
        verdict = "EXPOSED" if at < 0.5 * clean else "ROBUST" if white > 0.5 * clean else "TRANSFER-ONLY"
        verdict = "MASKED" if exhibit else "NOT MEASURED" if i == 9 else verdict
        symptoms = [
            {
                "id": f"{letter}{number}",
                "name": title,
                "effect": effect,
                "status": "fail"
                if exhibit and effect == "mask"
                else draw.choice(["pass", "pass", "pass", "suspect", "not_run", "void"]),
                "value": round(draw.random(), 5),
                "threshold": 0.05,
                "n": 500,
                "low": 0.01,
                "high": 0.09,
                "text": f"what was found {bad}",
            }
            for letter, number, title, effect in (
                ("A", 1, "same answer twice", "void"),
                ("A", 7, "logits in range", "cap"),
                ("A", 8, "gradient agrees with differences", "mask"),
                ("B", 7, "gradient is not zero", "mask"),
                ("B", 12, "no easier trigger", "note"),
                ("E", 4, "stripped target", "mask"),
            )
        ]
        missing = i == 9
        targets.append(
            {
                "name": name,
                "family": "gradient masking" if exhibit else FAMILIES[0 if i < 2 else 1 + i % 6],
                "exhibit": exhibit,
                "control": i == 0,
                "clean_accuracy": rate(clean),
                "clean_drop": None if i == 0 else {"value": 0.985 - clean - 0.004, "low": -0.01, "high": 0.08, "n": 1000},
                "worst_pair": None if missing else rate(at),
                "worst_pair_seen": rate(seen["robust_accuracy"]["value"]),
                "worst_pair_held_out": rate(held["robust_accuracy"]["value"]),
                "worst_case": None if missing else rate(at * 0.8),
                "worst_case_seen": rate(at * 0.9),
                "worst_case_held_out": rate(at * 0.85),
                "worst_pair_at": None if missing else {"source": worst["source"], "attack": worst["attack"]},
                "worst_pair_split": rate(at * 1.01),
                "max_transfer_rate": rate(max(c["transfer_rate"]["value"] for c in found)),
                "noise_floor": rate(0.012),
                "white_box_accuracy": None if i % 5 == 4 else rate(white),
                "naive_white_box_accuracy": rate(min(clean, white * 1.3)),
                "verdict": verdict,
                "reasons": [
                    f"worst pair keeps {100 * at:.1f} % of the images",
                    "S5 through relax: 30.1 %",
                    f"adaptive attack tried: none {bad}",
                ],
                "symptoms": symptoms,
                "rung_reached": "S5",
                "train_multiple": None if i == 5 else 1.0 if i == 0 else round(1 + 14 * strength * draw.random(), 2),
                "inference_multiple": 1.0 if i < 6 else 3.1,
                "train_seconds": 31.5,
                "train_memory_bytes": 41.2e6,
                "inference_memory_bytes": None if i == 5 else 9.6e6,
                "train_passes_multiple": 11.0,
                "inference_passes_multiple": 1.0,
                "stochastic": i in (14, 15),
                "worst_of_k": {"1": rate(at), "5": rate(at * 0.8), "20": rate(at * 0.7)} if i in (14, 15) else None,
                "detector": {
                    "false_positives": rate(0.05),
                    "lenient_worst_pair": rate(at * 1.2),
                    "lenient_white_box_accuracy": None,
                }
                if i == 7
                else None,
                "against_control": None
                if i == 0
                else {
                    "difference": {"value": 0.31, "low": 0.28, "high": 0.34, "n": 1000},
                    "p": 1.2e-30,
                    "p_holm": 3e-29,
                    "gained": 340,
                    "lost": 30,
                },
            }
        )
    gallery = [
        {
            "id": f"test-{100 + g}",
            "label": "seven",
            "source": SOURCES[g % 8],
            "attack": "MI_FGSM",
            "target": names[g % len(names)],
            "clean": png(3 * g),
            "delta": png(3 * g + 1),
            "adversarial": png(3 * g + 2),
            "source_clean": "seven",
            "source_adv": "two",
            "target_clean": "seven",
            "target_adv": "two" if g % 2 else "seven",
        }
        for g in range(30)
    ]
    return {
        "schema_version": 1,
        "name": f"Digits, small study {bad}",
        "description": f"Which defences of small networks stop examples made on other small networks? {bad}",
        "threat": {"norm": "Linf", "eps": 0.12, "levels": 30, "text": "Linf, eps = 30/255"},
        "bar": 0.5,
        "n_evaluation": 1000,
        "targets": targets,
        "cells": cells,
        "sources": sources,
        "attacks": attacks,
        "gallery": gallery,
        "not_tested": [
            "other norms than Linf",
            "eps above 30/255",
            "rung S4: a copy made from the target's answers",
            f"unrestricted changes {bad}",
        ],
        "provenance": {
            "firedoor": "0.1.0",
            "torch": "2.13.0",
            "ids_hash": "ab" * 32,
            "seed": "0",
            "device": "cpu",
            "plug_ins": bad,
        },
        "costs": {"crafting seconds": 812.5, "target_training": {"seconds": 300.0, "models": 22}},
    }


@pytest.fixture(scope="session")
def shown() -> str:
    """The page of the summary, made once for the tests that only read it."""
    return page.html(make_summary())


@pytest.fixture
def summary() -> dict[str, Any]:
    return make_summary()
