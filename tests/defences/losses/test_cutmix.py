"""CutMix: the rectangles, the labels that go with them, and how large they are on average."""

from __future__ import annotations

import pytest
import torch
from committee_fakes import held_out, numbers, value_of
from digit_fakes import fitted, passes, plain, trained_alike
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.cutmix import CutMix
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Batch, Split

N, SIDE = 400, 16
X = (torch.arange(N) / N)[:, None, None, None].expand(N, 2, SIDE, SIDE).contiguous()  # an image's grey level is its name
Y = torch.arange(N) % 3


class Read(nn.Module):
    """Answers with the mean of each corner and of the middle, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shown = nn.Parameter(torch.ones(())), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.shown = x
        return self.scale * torch.stack([x[:, 0, :8].mean((1, 2)), x[:, 1, 8:].mean((1, 2)), x[:, 0, :, 8:].mean((1, 2))], 1)


def mixed(alpha: float, order: Tensor | None = None) -> tuple[Tensor, float, Read]:
    order = torch.arange(N) if order is None else order
    module = Read()
    value = value_of(CutMix(alpha), module, Batch(X[order], Y[order], [str(int(i)) for i in order], 0))
    return module.shown, float(value.detach()), module


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_each_image_has_one_rectangle_of_another_and_its_share_of_the_label(alpha: float) -> None:
    x, value, module = mixed(alpha)
    assert torch.equal(x[:, 0], x[:, 1]), "the same rectangle in every channel"
    foreign = x[:, 0] != X[:, 0]
    rows, columns = foreign.any(2), foreign.any(1)
    assert torch.equal(foreign, rows[:, :, None] & columns[:, None, :]), "not a rectangle"
    for edge in (rows, columns):
        assert int((edge[:, 1:].int() - edge[:, :-1].int()).abs().sum(1).max()) <= 2, "not in one piece"
    partner = torch.where(foreign, x[:, 0], 0).flatten(1).amax(1).mul(N).round().long()
    assert torch.equal(x[:, 0], torch.where(foreign, X[partner, 0], X[:, 0])), "pixels of a third image"
    share = 1 - foreign.float().mean((1, 2))
    log_p = module(x).log_softmax(1).detach()
    own, other = log_p[torch.arange(N), Y], log_p[torch.arange(N), Y[partner]]
    assert value == pytest.approx(float(-(share * own + (1 - share) * other).mean()), rel=1e-5)
    assert int((share == 1).sum()) < N / 2


def test_the_mean_size_is_the_integral_over_side_and_place() -> None:
    """A side s at a uniform centre covers s - s^2/4 of a length, and s^2 is uniform: 1/2 - 1/5 + 1/48 of the area."""
    x, _, _ = mixed(1.0)
    cut = (x[:, 0] != X[:, 0]).float().mean((1, 2))
    error = 4 * float(cut.std()) / N**0.5
    assert float(cut.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=error)


def test_rectangles_depend_on_the_example_alone() -> None:
    order = torch.from_numpy(seed.order(N, 1))
    (x, _, _), (again, _, _) = mixed(1.0), mixed(1.0, order)
    here, there = (x[:, 0] != X[:, 0])[order], again[:, 0] != X[order, 0]
    both = here.any((1, 2)) & there.any((1, 2))  # else it met itself
    assert int(both.sum()) > 0.9 * N
    assert torch.equal(here[both], there[both])


def test_without_alpha_it_is_plain_training() -> None:
    assert trained_alike(CutMix(0.0), CrossEntropy())
    assert not trained_alike(CutMix(), CrossEntropy())


def test_it_costs_one_pass_and_says_what_it_cannot_do() -> None:
    assert passes(CutMix()) == 1
    with pytest.raises(SpecError, match=r"CutMix: alpha must be 0 or more and finite, got -1\. Try 1"):
        CutMix(-1)
    with pytest.raises(DataError, match=r"CutMix needs images \(c, h, w\), got inputs of shape \(4,\)\. Use Mixup"):
        CutMix().start(None, Split(numbers(3, 4), Y[:3], ("a", "b", "c")))  # type: ignore[arg-type]


def test_the_network_sees_both_digits_of_a_patchwork() -> None:
    x, y = held_out().x[:200], held_out().y[:200]
    patchwork, differ = torch.cat([x[:, :, :4], x.flip(0)[:, :, 4:]], 2), y != y.flip(0)
    both = []
    for m in (fitted(CutMix())[0], plain()):
        p = m(patchwork).softmax(1).detach()
        rows = torch.arange(len(y))
        both.append(float(torch.minimum(p[rows, y], p[rows, y.flip(0)])[differ].mean()))
    assert both[0] > 1.5 * both[1], both
