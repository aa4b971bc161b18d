"""Compression as a defence: high frequencies are thrown away, and with them fragile perturbations."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from firedoor.defences.straight_through import value_of
from firedoor.defences.wrappers.differentiable_jpeg import decoded
from firedoor.defences.wrappers.transformed import Transformed, needs_images, straight_through
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Classifier, Store

__all__ = ["JPEG"]


@dataclass(frozen=True)
class JPEG:
    """Encode and decode with the codec of Pillow; the model sees 8-bit grey (1 channel) or RGB (3 channels).

    wrap has no gradient. relax keeps the codec in the forward pass and goes back through a differentiable one. relax_by_identity
    goes back through the identity, which broke this defence entirely (Athalye et al. 2018, arXiv:1802.00420).

    Family: input transformation. Year: 2018.
    Reference: Guo et al. 2018, arXiv:1711.00117.
    """

    quality: int = 75
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise SpecError(f"JPEG: quality must be in 1..100, got {self.quality}. Try 75.")
        if self.subsampling not in ("4:4:4", "4:2:2", "4:2:0"):
            raise SpecError(f"JPEG: subsampling must be 4:4:4, 4:2:2 or 4:2:0, got {self.subsampling!r}. Choose one.")

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier:
        return Transformed(model, self._codec)

    def relax(self, model: Classifier, store: Store | None = None) -> Classifier:
        def through(x: Tensor) -> Tensor:
            return value_of(self._codec(x), gradient_of=decoded(x, self.quality, self.subsampling))

        return Transformed(model, through)

    def relax_by_identity(self, model: Classifier, store: Store | None = None) -> Classifier:
        """The exact codec, and back through the identity."""
        return Transformed(model, straight_through(self._codec))

    def _codec(self, x: Tensor) -> Tensor:
        needs_images(x, "JPEG")
        if x.shape[1] not in (1, 3):
            raise DataError(f"JPEG needs 1 or 3 channels, got {x.shape[1]}. Use it on grey or RGB images only.")
        pixels = (255 * x.detach()).round().clamp(0, 255).to("cpu", torch.uint8).movedim(1, 3).numpy()
        decoded = np.stack([self._one(image) for image in pixels]) if len(pixels) else pixels
        return torch.from_numpy(decoded).movedim(3, 1).to(x.device).to(x.dtype).div(255)

    def _one(self, image: np.ndarray) -> np.ndarray:
        grey = image.shape[2] == 1
        buffer = io.BytesIO()
        picture = Image.fromarray(image[:, :, 0] if grey else image)
        picture.save(buffer, format="JPEG", quality=self.quality, subsampling="4:4:4" if grey else self.subsampling)
        decoded = np.array(Image.open(io.BytesIO(buffer.getvalue())))
        return decoded[:, :, None] if grey else decoded
