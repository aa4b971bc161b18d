"""The codec in torch: its tables and pixels are those of Pillow, its backward pass is the one of the written formula."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn, idctn
from torch import Tensor

from firedoor import seed
from firedoor.defences.wrappers.differentiable_jpeg import decoded, tables
from firedoor.defences.wrappers.jpeg import JPEG

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def pictures(channels: int, height: int = 45, width: int = 60) -> Tensor:
    """Two smooth 8-bit pictures with an edge and some noise; sides that no block divides."""
    down, right = torch.arange(height)[:, None] / 9, torch.arange(width) / 7
    waves = torch.stack([(down + k).sin() * (right - k).cos() for k in range(6)]).view(2, 3, height, width)
    x = 0.5 + 0.3 * waves[:, :channels]
    x[:, :, height // 2 :, : width // 3] = 0.9
    with seed.streams(0, ["a", "b"]):
        x = x + seed.normal(x, 0.02)
    return (255 * x).round().minimum(torch.tensor(255.0)).maximum(torch.tensor(0.0)) / 255


def codec(x: Tensor, quality: int, subsampling: str) -> Tensor:
    """What Pillow makes of it."""
    out: Tensor = JPEG(quality, subsampling).wrap(lambda seen: seen)(x)  # type: ignore[arg-type,assignment]
    return out


def slope(x: Tensor, along: Tensor, quality: int, subsampling: str) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad((along * decoded(x, quality, subsampling)).sum(), x)
    return g


def test_the_tables_are_those_that_pillow_writes_at_every_quality() -> None:
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, format="JPEG", quality=quality)
        written = Image.open(buffer).quantization  # type: ignore[attr-defined]
        assert [t.flatten().tolist() for t in tables(quality)] == [list(written[0]), list(written[1])], quality


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize(("channels", "subsampling"), [(1, "4:2:0"), *((3, s) for s in SUBSAMPLINGS)])
def test_the_pixels_are_those_of_pillow_up_to_a_few_levels(channels: int, subsampling: str, quality: int) -> None:
    """libjpeg computes in whole numbers: a coefficient halfway between two levels may go the other way, and then a block differs."""
    x = pictures(channels)
    ours = decoded(x, quality, subsampling)
    off = 255 * (ours - codec(x, quality, subsampling)).abs()
    lost = 255 * (codec(x, quality, subsampling) - x).abs().mean()
    bound = 0.75 if channels == 1 or subsampling == "4:4:4" else 1.25
    assert off.mean() < bound < lost, f"{off.mean():.2f} levels off on the average; the codec itself changes {lost:.2f}"
    assert (off > 4).double().mean() < 0.03
    torch.testing.assert_close((255 * ours).round() / 255, ours, rtol=0, atol=1e-6)


def test_sides_that_no_block_divides_are_padded_by_the_edge() -> None:
    x = pictures(3)[:, :, :13, :21]
    padded = F.pad(x, (0, 11, 0, 3), mode="replicate")
    assert torch.equal(decoded(x, 75, "4:2:0"), decoded(padded, 75, "4:2:0")[:, :, :13, :21])


@pytest.mark.parametrize("quality", [20, 75])
def test_a_coefficient_goes_back_through_three_times_its_squared_rest(quality: int) -> None:
    """For one grey block: the inverse transform of 3 r^2 times the transform of the gradient, r = coefficient - its rounding."""
    x, along = pictures(1)[:1, :, :8, :8].double(), pictures(1)[1:, :, 20:28, :8].double() - 0.5
    table = tables(quality)[0].numpy()
    share = dctn(np.round(255 * x[0, 0].numpy()) - 128, norm="ortho") / table
    rest = share - np.sign(share) * np.floor(np.abs(share) + 0.5)
    wanted = idctn(3 * rest**2 * dctn(along[0, 0].numpy(), norm="ortho"), norm="ortho")
    np.testing.assert_allclose(slope(x, along, quality, "4:4:4")[0, 0].numpy(), wanted, rtol=1e-6, atol=1e-9)
    assert np.abs(wanted).max() > 0.01


def test_colour_that_subsampling_averages_away_has_no_gradient() -> None:
    """Stripes of one column of red, with green so that brightness stays: the mean of two columns is 0."""
    x, stripes = pictures(3, 16, 16).double(), torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    stripes[:, 0, :, ::2], stripes[:, 0, :, 1::2] = 1, -1
    stripes[:, 1] = -stripes[:, 0] * 0.299 / 0.587
    along = {s: float((slope(x, stripes, 95, s) * stripes).sum()) for s in SUBSAMPLINGS}
    assert along["4:4:4"] > 1
    assert along["4:2:2"] == pytest.approx(0, abs=1e-9)
    assert along["4:2:0"] == pytest.approx(0, abs=1e-9)
