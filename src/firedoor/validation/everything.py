"""One study per seed, of every planted failure and every honest model; then a table of what was caught."""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from firedoor.defences.broken.kwta import KWTA
from firedoor.defences.wrappers.jpeg import JPEG
from firedoor.errors import SpecError
from firedoor.intervals import clopper_pearson
from firedoor.models.wrapped import Wrapped
from firedoor.protocols import Model
from firedoor.report.summary import summarise
from firedoor.study import Study, from_table
from firedoor.validation.honest import HONEST, NOISY, Normalised
from firedoor.validation.planted import FAULTS, Planted

__all__ = ["judged", "renew", "study_of", "table", "validate"]

SEEDS = (0, 1, 2, 3, 4)
BLOCK = re.compile(r"(<!-- begin: validation[^>]* -->\n).*?(<!-- end: validation -->)", re.DOTALL)
FIRED = ("fail", "suspect", "void")
SETS: dict[str, dict[str, Any]] = {  # where thresholds were frozen, and what is counted
    "shapes": {"data": {"type": "Shapes", "size": 12, "splits": {"train": 2500, "evaluation": 200}}, "eps": "4/255"},
    "digits": {"data": {"type": "Digits", "splits": {"evaluation": 300}}, "eps": "40/255"},
}
LOSSES = ("cross_entropy", "margin")


def validate(data: str = "digits", seeds: tuple[int, ...] = SEEDS, page: Path | None = None) -> int:
    """Run all seeds, two at a time, write the table, print one JSON line last. 0 if all are caught and honest models are left alone.

    `data`: a name of SETS. `page`: a file whose block `validation` takes the table. Errors: SpecError for another name, and for a page
    without that block, before anything runs.
    """
    if data not in SETS:
        raise SpecError(f"validation: data must be one of {', '.join(SETS)}, got {data!r}. Choose one.")
    if page is not None and not (page.is_file() and BLOCK.search(page.read_text(encoding="utf-8"))):
        raise SpecError(
            f"validation: {page} must be a file with <!-- begin: validation --> and <!-- end: validation -->. Put both into it."
        )
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(2) as pool:
        for seed, found in pool.imap_unordered(_one_seed, [(seed, data, folder) for seed in seeds]):
            rows += found
            caught, honest = sum(r["caught"] for r in found if r["planted"]), [r for r in found if not r["planted"]]
            wrong = ", ".join(r["name"] for r in found if r["planted"] != r["caught"]) or "none"
            text = f"seed {seed}: {caught} of {len(found) - len(honest)} caught, {sum(r['caught'] for r in honest)} false alarms of {len(honest)}"
            typer.echo(f"{text}; wrong: {wrong}; {time.perf_counter() - began:.0f} s", err=True)
    planted, honest = [r for r in rows if r["planted"]], [r for r in rows if not r["planted"]]
    counts = {
        "planted": len(planted),
        "caught": sum(r["caught"] for r in planted),
        "honest": len(honest),
        "false_alarms": sum(r["caught"] for r in honest),
    }
    kinds = {
        "data": data,
        "kinds_planted": len({r["name"] for r in planted}),
        "kinds_honest": len({r["name"] for r in honest}),
        "seeds": len(seeds),
    }
    proves = clopper_pearson(counts["caught"], counts["planted"]).low
    minutes = round((time.perf_counter() - began) / 60, 1)
    if page is not None:
        renew(page, f"{_in_words(counts, minutes)}\n{table(rows)}")
    typer.echo(json.dumps({**counts, **kinds, "caught_at_least": round(proves, 3), "minutes": minutes}))
    return 0 if counts["caught"] == counts["planted"] and counts["false_alarms"] <= len(seeds) else 1


def renew(page: Path, text: str) -> None:
    """Put the text into the block `validation` of the page."""
    page.write_text(BLOCK.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", page.read_text(encoding="utf-8")), encoding="utf-8")


def _in_words(counts: dict[str, int], minutes: float) -> str:
    proves = clopper_pearson(counts["caught"], counts["planted"]).low
    at_most = clopper_pearson(counts["false_alarms"], counts["honest"]).high
    return (
        f"{counts['caught']} of {counts['planted']} planted failures were caught (so at least {100 * proves:.1f} % of such failures would be), "
        f"with {counts['false_alarms']} false alarms among\n{counts['honest']} honest models (so at most {100 * at_most:.1f} % of such models "
        f"would be). It took {minutes} minutes.\n"
    )


def judged(seed: int, data: str, store: str) -> list[dict[str, Any]]:
    """One row per target of one seed: what fired, the verdict, and whether that is what it should be."""
    import torch

    from firedoor.pipeline import carry_out
    from firedoor.store import FileStore

    torch.set_num_threads(1)
    study = study_of(seed, data)
    outcome = carry_out(study, FileStore(store), lambda *_: None)
    summary = summarise(outcome.matrix, outcome.symptoms, outcome.costs, [], {})
    rows = []
    for target in summary["targets"]:
        name = target["name"]
        fault = FAULTS.get(name)
        fired = sorted({s["id"] for s in target["symptoms"] if s["status"] in FIRED})
        masks = sorted({s["id"] for s in target["symptoms"] if s["effect"] == "mask" and s["status"] == "fail"})
        if fault is None:
            caught = bool(masks) or target["verdict"] == "MASKED"
        else:
            caught = bool(set(fault.tests) & set(fired)) and target["verdict"] in fault.verdicts
        row = {
            "seed": seed,
            "name": name,
            "planted": fault is not None,
            "verdict": target["verdict"],
            "fired": fired,
            "masks": masks,
        }
        rows.append({**row, "caught": caught})
    return rows


def study_of(seed: int, data: str) -> Study:
    """The targets share what they can, so that a failure differs from an honest model in nothing else."""
    own, chosen = 1000 * (seed + 1), SETS[data]
    levels = int(chosen["eps"].split("/")[0])
    weaker = {"type": "PGD", "steps": 3, "threat": {"type": "Linf", "eps": f"{levels / 4:g}/255"}}
    built = from_table(
        {
            "name": f"validation, seed {seed}",
            "seed": seed,
            "control": "cnn",
            "data": chosen["data"],
            "threat": {"type": "Linf", "eps": chosen["eps"]},
            "architecture": {"type": "SmallCNN"},
            "fit": {"epochs": 15, "optimiser": "adamw", "lr": 0.003},
            "sources": {
                "twin": {"seed": own + 1},
                "another resnet": {"architecture": {"type": "ResNet"}, "fit": {"epochs": 6}, "seed": own + 2},
                "another vit": {"architecture": {"type": "ViT"}, "seed": own + 3},
                "slightly robust": {"fit": {"loss": {"type": "Madry", "attack": weaker}}, "seed": own + 4},
            },
            "attacks": {
                "SignNoise": {},
                "UniformNoise": {},
                "MI_FGSM": {},
                "TI_FGSM": {"kernel": 3},
                "VMI_FGSM": {"n": 3},
                "DI_FGSM": {},
            },
            "white_box": {f"PGD_{loss}": {"type": "PGD", "steps": 20, "objective": loss, "keep": "best"} for loss in LOSSES},
            "models": {"noisy": {"seed": own, **NOISY}},
            "targets": {name: t if "type" in t else {"seed": own, **t} for name, t in HONEST.items()},
        }
    )
    cnn: Any = built.targets["cnn"]
    kwta = replace(cnn, specimen=KWTA(keep=0.1), fit=replace(cnn.fit, lr=0.001, epochs=25))
    within: dict[str, Model] = {
        "cnn": cnn,
        "pgd_at": built.targets["adversarially trained"],
        "kwta": kwta,
        "jpeg": Wrapped(cnn, JPEG(75)),
    }
    faults: dict[str, Model] = {
        name: Planted(within[fault.on], name) for name, fault in FAULTS.items() if data == "digits" or not fault.dark_corner
    }
    return replace(built, targets={**built.targets, "log-probabilities": Normalised(cnn), **faults})


def table(rows: list[dict[str, Any]]) -> str:
    """The confusion table as Markdown: model by tests that fired and by verdict, counted over seeds."""
    seeds = len({r["seed"] for r in rows})
    lines = [
        f"| model | planted | caught, of {seeds} | verdicts | tests that fired, of {seeds} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(r["name"] for r in sorted(rows, key=lambda r: not r["planted"])):
        own = [r for r in rows if r["name"] == name]
        fault = FAULTS.get(name)
        verdicts = {v: sum(r["verdict"] == v for r in own) for v in sorted({r["verdict"] for r in own})}
        fired = {t: sum(t in r["fired"] for r in own) for t in sorted({t for r in own for t in r["fired"]})}
        kind = f"must fire {' or '.join(fault.tests)}" if fault else "honest"
        alarm = str(sum(r["caught"] for r in own))
        said = ", ".join(f"{v} {k}" for v, k in verdicts.items())
        lines.append(f"| {name} | {kind} | {alarm} | {said} | {', '.join(f'{t} {k}' for t, k in fired.items())} |")
    return "\n".join(lines) + "\n"


def _one_seed(task: tuple[int, str, str]) -> tuple[int, list[dict[str, Any]]]:
    seed, data, folder = task
    return seed, judged(seed, data, f"{folder}/{seed}")
