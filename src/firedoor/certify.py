"""The command that certifies one target of a study: which network, in pieces that are kept, as one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from firedoor import catalogue, spec
from firedoor.certificates import Certificates, certified_accuracy, largest_radius, linf_note
from firedoor.defences.wrappers.smoothing import Smoothing
from firedoor.errors import SpecError, StoreError
from firedoor.files import write_atomically
from firedoor.intervals import wilson
from firedoor.protocols import Model
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["certify", "shown", "smoothed", "write"]

PIECE = 10  # images that are kept together
FILE = "certificates.json"


def certify(
    study: Study,
    target: str,
    store: FileStore,
    n: int = 10_000,
    n0: int = 100,
    alpha: float | None = None,
    images: int = 100,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Certificates of the first `images` evaluation images, as plain values. `alpha`: that of the target unless given.

    Errors: SpecError if the target is unknown or not a smoothed network, or a number makes no sense.
    """
    model, smoothing = smoothed(study, target)
    if images < 1:
        raise SpecError(f"--images must be 1 or more, got {images}. Try 100.")
    split = study.data.split("evaluation")[:images]
    alpha, total = smoothing.alpha if alpha is None else alpha, len(split)
    pieces = [
        Certificates(model, study.data, smoothing.sigma, n0, n, alpha, "evaluation", i, min(i + PIECE, total), study.seed)
        for i in range(0, total, PIECE)
    ]
    progress("certify", 0, total)
    found = [c.load(store, lambda done, _, c=c: progress("certify", c.start + done, total)) for c in pieces]  # type: ignore[misc]
    labels, radii = (np.concatenate(column) for column in zip(*found, strict=True))
    progress("certify", total, total)
    y, top = split.y.numpy(), largest_radius(smoothing.sigma, n, alpha)
    eps = study.threat.eps if study.threat.norm == "Linf" else 8 / 255
    steps = [t for t in (*np.arange(0, 1, 0.25), *np.arange(1, 100, 0.5)) if t * smoothing.sigma <= top]
    rates = [(float(t), certified_accuracy(y, labels, radii, t * smoothing.sigma)) for t in steps]
    return {
        "study": study.name,
        "target": target,
        "sigma": smoothing.sigma,
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "images": total,
        "certified_accuracy": [{"times_sigma": t, "radius": t * smoothing.sigma, **vars(e)} for t, e in rates],
        "abstained": vars(wilson(int((labels < 0).sum()), total)),
        "largest_radius": top,
        "seconds_per_image": sum(c.seconds(store) for c in pieces) / total,
        "linf_note": linf_note(study.data.shape, eps, top),
        "examples": [
            {"id": i, "y": int(a), "label": int(b), "radius": float(r)}
            for i, a, b, r in zip(split.ids, y, labels, radii, strict=True)
        ],
    }


def smoothed(study: Study, target: str) -> tuple[Model, Smoothing]:
    """The network under the smoothing of a target, and the smoothing. Errors: SpecError where no certificate would hold."""
    if target not in study.targets:
        raise SpecError(f"the study has no target {target!r}.{catalogue.nearest(target, study.targets)}")
    model = study.targets[target]
    wrapper = getattr(model, "wrapper", None)
    if isinstance(wrapper, Smoothing):
        if not wrapper.sigma:
            raise SpecError(f"target {target!r} must have a sigma above 0 to be certified, got 0. Try sigma = 0.25.")
        return model.model, wrapper  # type: ignore[attr-defined]
    if any(isinstance(r, Smoothing) for r in spec.recipes_in(model)):
        raise SpecError(
            f"target {target!r} must have Smoothing outermost, got {type(wrapper or model).__name__} around it: a radius holds "
            "for what Smoothing is given. Certify the target without that layer."
        )
    has = [t for t, m in study.targets.items() if isinstance(getattr(m, "wrapper", None), Smoothing)]
    raise SpecError(
        f"target {target!r} must be wrapped in Smoothing to be certified, got none. "
        + (f"Targets with it: {', '.join(has)}." if has else 'Add one with wrapper = { type = "Smoothing" }.')
    )


def shown(found: dict[str, Any]) -> Group:
    """What the command prints: one row per radius, and below it abstentions, time and what it says of Linf."""
    abstained = found["abstained"]
    title = (
        f"{found['target']}: certified L2 accuracy of {found['images']} images, sigma {found['sigma']:g}, "
        f"n {found['n']}, alpha {found['alpha']:g}"
    )
    table = Table("radius / sigma", "radius", "certified, % (95 % interval)")
    for row in found["certified_accuracy"]:
        table.add_row(f"{row['times_sigma']:g}", f"{row['radius']:.3f}", _percent(row))
    notes = (
        f"Abstained on {_percent(abstained)} %, counted wrong. {found['seconds_per_image']:.2g} s per image.",
        f"{found['n']} draws certify a radius of {found['largest_radius']:.2f} at most. A radius holds for the vote of endless draws, "
        f"each with probability {1 - found['alpha']:g}; a vote of few may abstain inside it.",
        found["linf_note"],
    )
    return Group(Text(title, style="bold"), table, *notes)


def write(found: dict[str, Any], out: Path) -> Path:
    """Put `found` into certificates.json of the folder `out`, under its target's name; other targets stay. Errors: StoreError."""
    file = out / FILE
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        write_atomically(file, json.dumps({**known, found["target"]: found}, indent=1, allow_nan=False).encode())
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{file} cannot be read and written ({error}). Move it away, or give another folder with --out.") from None
    return file


def _percent(rate: dict[str, float]) -> str:
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"
