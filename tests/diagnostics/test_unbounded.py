"""B7 on models of which it is known how many images an attack without a budget cannot break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firedoor.attacks import I_FGSM
from firedoor.diagnostics.unbounded import Unbounded
from firedoor.intervals import clopper_pearson
from firedoor.protocols import Split, Symptom
from firedoor.threat import Linf

N = 100


class Bright(nn.Module):
    """Class 1 where the mean of the image is above one half. The first `sealed` of N images answer 0 whatever they show."""

    def __init__(self, sealed: int) -> None:
        super().__init__()
        self.sealed = sealed

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).mean(1) - 0.5
        shut = torch.arange(len(x)) < self.sealed if len(x) == N else torch.zeros(len(x), dtype=torch.bool)
        margin = torch.where(shut, -0.2 + 0 * margin, margin)
        return torch.stack([-margin, margin], 1)


def found(sealed: int) -> Symptom:
    x = torch.full((N, 1, 4, 4), 0.2)
    split = Split(x, torch.zeros(N, dtype=torch.long), tuple(f"image/{i}" for i in range(N)))
    attack = I_FGSM(Linf(1.0), steps=10)
    return Unbounded(attack)(Bright(sealed).eval(), split)


@pytest.mark.parametrize(("sealed", "status"), [(0, "pass"), (1, "suspect"), (2, "fail"), (5, "fail"), (60, "fail")])
def test_it_fails_above_one_percent(sealed: int, status: str) -> None:
    sign = found(sealed)
    exact = clopper_pearson(sealed, N)
    assert (sign.status, sign.value, sign.low, sign.high) == (status, sealed / N, exact.low, exact.high)
    assert sign.examples == tuple(f"image/{i}" for i in range(min(sealed, 20))), "the images that survive are named"


def test_nothing_right_is_nothing_to_break() -> None:
    x = torch.full((4, 1, 4, 4), 0.9)
    split = Split(x, torch.zeros(4, dtype=torch.long), tuple("abcd"))
    assert Unbounded(I_FGSM(Linf(1.0), steps=2))(Bright(0).eval(), split).status == "not_run"
