"""Pictures for the report: clean image, perturbation, adversarial image, and what both models said."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from firedoor.matrix import Matrix
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["gallery_of"]

SHOWN = 4  # rows per target


def gallery_of(study: Study, matrix: Matrix, store: FileStore) -> list[dict[str, Any]]:
    """For each target, a few images of the transferred cell that turned most of its answers, one that held among them."""
    split = study.images
    if split.x.dim() != 4:
        return []
    rows: list[dict[str, Any]] = []
    y, names = split.y.numpy(), (*study.data.classes, "abstained")
    for t, target in enumerate(study.targets):
        cells = [
            (s, a)
            for s in study.sources
            for a in study.attacks
            if not study.is_null(a) and matrix.right(s, a, target) is not None and matrix.home(s, a, target) is not None
        ]
        if not cells:
            continue
        clean = matrix.data["clean"].values[t]
        answers = {c: matrix.data["predicted"].values[matrix.sources.index(c[0]), matrix.attacks.index(c[1]), t] for c in cells}
        turned = {c: (labels != y) & (clean == y) for c, labels in answers.items()}
        source, attack = max(cells, key=lambda c: int(turned[c].sum()))
        after = answers[source, attack]
        s, a = matrix.sources.index(source), matrix.attacks.index(attack)
        home, before = matrix.data["home"].values[s, a], matrix.data["source_clean"].values[s]
        some = np.roll(np.arange(len(y)), -7 * t)  # other images for every target
        fooled = list(some[turned[source, attack][some]][: SHOWN - 1])
        held = list(some[((after == y) & (clean == y))[some]][: SHOWN - len(fooled)])
        for i in (*fooled, *held):
            shard, row = divmod(int(i), study.shard)
            craft = study.crafts(study.sources[source], study.attacks[attack])[shard]
            x, x_adv = split.x[i], store.craft(craft).x[row]
            delta = x_adv - x
            rows.append(
                {
                    "id": split.ids[i],
                    "label": names[y[i]],
                    "source": source,
                    "attack": attack,
                    "target": target,
                    "clean": _png(x),
                    "delta": _png(0.5 + delta / (2 * max(float(delta.abs().max()), 1e-9))),
                    "adversarial": _png(x_adv),
                    "source_clean": names[before[i]],
                    "source_adv": names[home[i]],
                    "target_clean": names[clean[i]],
                    "target_adv": names[after[i]],
                }
            )
    return rows


def _png(x: Tensor) -> str:
    """One image (c, h, w) in [0,1] as base64 PNG; the first or the first three channels."""
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] < 3 else pixels[:, :, :3])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
