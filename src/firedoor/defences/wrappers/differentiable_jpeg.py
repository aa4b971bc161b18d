"""JPEG in torch, for its backward pass: the baseline codec of libjpeg, from YCbCr to the quantisation of 8x8 cosine transforms.

Rounding keeps its value. Pixels go back through the identity, coefficients through a cubic (Shin and Song 2017, "JPEG-resistant
adversarial images"): with the identity there too, the whole codec of a grey image would go back through the identity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from firedoor.defences.straight_through import value_of

__all__ = ["decoded", "tables"]

SUBSAMPLING = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}  # luma rows and columns per chroma sample
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99),
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def decoded(x: Float[Tensor, "n c h w"], quality: int, subsampling: str = "4:4:4") -> Float[Tensor, "n c h w"]:
    """x in [0,1], grey (c = 1) or RGB (c = 3), after coding and decoding; also in [0,1] and on whole levels of 255.

    Sides that are no multiple of a block are padded by repeating the edge. Differs from libjpeg by a few levels, where that
    computes in whole numbers.
    """
    height, width = x.shape[2:]
    rows, columns = SUBSAMPLING[subsampling] if x.shape[1] == 3 else (1, 1)
    luma, chroma = (table.to(x) for table in tables(quality))
    level = _level(255 * F.pad(x, (0, -width % (8 * columns), 0, -height % (8 * rows)), mode="replicate"))
    if x.shape[1] == 1:
        out = _quantised(level, luma)
    else:
        ycc = _level(_mixed(level, TO_YCC) + level.new_tensor([0, 128, 128]).view(3, 1, 1))
        thin = _level(F.avg_pool2d(ycc[:, 1:], (rows, columns)))
        full = _widened(_quantised(thin, chroma), rows, columns)
        out = _level(_mixed(torch.cat([_quantised(ycc[:, :1], luma), full - 128], 1), TO_RGB))
    return out[:, :, :height, :width] / 255


def tables(quality: int) -> tuple[Tensor, Tensor]:
    """The quantisation tables (8, 8) of luma and chroma, as libjpeg scales those of the standard's annex K."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    chroma = torch.full((8, 8), 99)
    chroma[:4, :4] = torch.tensor(CHROMA)
    luma, chroma = (((table * scale + 50) // 100).clip(1, 255) for table in (torch.tensor(LUMA), chroma))
    return luma, chroma


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """(n, c, h, w) of levels to what is left of them after the quantisation of their 8x8 blocks."""
    n, c, h, w = plane.shape
    basis = _cosines().to(plane)
    blocks = (plane - 128).view(n, c, h // 8, 8, w // 8, 8)
    whole = _rounded(torch.einsum("ui,ncaibj,vj->ncaubv", basis, blocks, basis) / table[:, None, :])
    back = torch.einsum("ui,ncaubv,vj->ncaibj", basis, whole * table[:, None, :], basis)
    return _level(back.reshape(n, c, h, w) + 128)


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 samples; rows are frequencies."""
    at = torch.arange(8, dtype=torch.float64)
    basis = (math.pi / 8 * (at + 0.5) * at[:, None]).cos() / 2
    basis[0] /= math.sqrt(2)
    return basis


def _widened(plane: Tensor, rows: int, columns: int) -> Tensor:
    """Chroma at the resolution of luma, by the triangle filter that libjpeg uses."""
    if rows == columns == 1:
        return plane
    return _level(F.interpolate(plane, scale_factor=(rows, columns), mode="bilinear", align_corners=False))


def _mixed(planes: Tensor, by: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("kc,nchw->nkhw", planes.new_tensor(by), planes)


def _level(value: Tensor) -> Tensor:
    """The nearest of 0..255. Back through the identity also where it is cut off: there the pixel still decides."""
    return value_of(value.round().clip(0, 255), gradient_of=value)


def _rounded(value: Tensor) -> Tensor:
    """The nearest whole number, halves away from zero as in libjpeg: many coefficients lie exactly there.

    Goes back through round(v) + (v - round(v))^3, whose slope is small where a small change of the coefficient is lost.
    """
    whole = (value.sign() * (value.abs() + 0.5).floor()).detach()
    return value_of(whole, gradient_of=whole + (value - whole) ** 3)
