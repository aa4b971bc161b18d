"""The 20 labelled ImageNet photographs of foolbox (MIT licence) as an .npz that `Arrays` reads: uint8, (20, 3, 224, 224).

Usage: python examples/imagenet/photographs.py FOOLBOX_WHEEL OUT.npz

They are read from the wheel; foolbox itself is not installed. The shorter side becomes 256, of which the middle 224 x 224 are kept.
They are the evaluation images. Training images are asked for by the format and used by nobody here: one grey image stands there.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

NAME = re.compile(r"foolbox/data/imagenet_(\d+)_(\d+)\.jpg")
SHORT, SIDE, GREY = 256, 224, 127


def photographs(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """(x uint8 (n, 3, 224, 224), y int64 (n,)) in the order of their numbers; the label is the last number of the name."""
    with zipfile.ZipFile(wheel) as archive:
        found = sorted((int(m[1]), int(m[2]), m[0]) for m in map(NAME.fullmatch, archive.namelist()) if m)
        if not found:
            sys.exit(f"{wheel} must hold foolbox/data/imagenet_<number>_<label>.jpg, got none. Download foolbox 3.3.4.")
        x = np.stack([cropped(archive.read(name)) for _, _, name in found])
    return x, np.array([label for _, label, _ in found], dtype=np.int64)


def cropped(content: bytes) -> np.ndarray:
    """The middle of one photograph, uint8 (3, 224, 224)."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = (round(SHORT * side / min(image.size)) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(image).transpose(2, 0, 1)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("Usage: python examples/imagenet/photographs.py FOOLBOX_WHEEL OUT.npz")
    x, y = photographs(Path(sys.argv[1]))
    grey = np.full((1, 3, SIDE, SIDE), GREY, np.uint8)
    out = Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, x=grey, y=np.zeros(1, np.int64), x_test=x, y_test=y)
    print(f"{out}: {len(x)} photographs of {len(set(y.tolist()))} classes")


if __name__ == "__main__":
    main()
