"""Mixup: what is mixed with what, how much of it, and that the labels are mixed alike."""

from __future__ import annotations

import math

import pytest
import torch
from committee_fakes import held_out, numbers, value_of
from digit_fakes import fitted, linear, passes, plain, trained_alike
from scipy.stats import beta, kstest
from torch import Tensor

from firedoor import seed
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.mixup import Mixup
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch

N = 400
X, Y = torch.eye(N), torch.arange(N) % 3  # an image says by itself what it was mixed from


def mixed(alpha: float, order: Tensor | None = None, epoch: int = 0) -> tuple[Tensor, float, float]:
    """The images that the network is shown, the loss, and the loss by hand."""
    order = torch.arange(N) if order is None else order
    module, shown = linear(numbers(3, N)), []
    module.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    batch = Batch(X[order], Y[order], [str(int(i)) for i in order], epoch)
    value = float(value_of(Mixup(alpha), module, batch).detach())
    (x,) = shown
    labels = x @ torch.nn.functional.one_hot(Y, 3).float()  # the image's own parts, in their labels
    by_hand = -(labels * module(x).log_softmax(1)).sum(1).mean()
    return x, value, float(by_hand.detach())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_each_image_is_mixed_with_one_other_and_the_labels_alike(alpha: float) -> None:
    x, value, by_hand = mixed(alpha)
    torch.testing.assert_close(x.sum(1), torch.ones(N))
    assert int((x > 0).sum(1).max()) <= 2
    assert value == pytest.approx(by_hand, rel=1e-5)
    partner = (x - torch.diag(x.diag())).argmax(1)
    other = (x > 0).sum(1) == 2
    assert 0.9 < float(other.float().mean()) <= 1, "an example is its own partner once in a batch, on average"
    counts = partner[other].bincount(minlength=N)
    assert 0.55 < float((counts > 0).float().mean()) < 0.72, "partners are drawn with repetition: 1 - 1/e of the batch is one"
    assert kstest(x.diag()[other].numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_shares_depend_on_the_example_and_the_epoch_alone() -> None:
    order = torch.from_numpy(seed.order(N, 1))
    (x, _, _), (again, _, _), (later, _, _) = mixed(1.0), mixed(1.0, order), mixed(1.0, epoch=1)
    share, others = x.diag(), again[torch.arange(N), order]
    alone = (x.amax(1) == 1)[order] | (again.amax(1) == 1)  # mixed with itself here or there
    assert int((~alone).sum()) > N - 10
    torch.testing.assert_close(others[~alone], share[order][~alone])
    assert not torch.equal(x, later)


def test_without_alpha_it_is_plain_training_and_tends_to_it() -> None:
    assert trained_alike(Mixup(0.0), CrossEntropy())
    assert not trained_alike(Mixup(0.2), CrossEntropy())
    x, _, _ = mixed(1e-4)
    assert float(x.amax(1).min()) > 0.999, "shares of 0 and 1: an image of the batch, unmixed"
    x, _, _ = mixed(1e6)
    assert float((x.diag()[(x > 0).sum(1) == 2] - 0.5).abs().max()) < 0.01


def test_it_costs_one_pass_and_refuses_a_negative_alpha() -> None:
    assert passes(Mixup()) == 1
    with pytest.raises(SpecError, match=r"Mixup: alpha must be 0 or more and finite, got -1\. Try 1"):
        Mixup(-1)


def test_the_network_becomes_linear_between_digits() -> None:
    """Half way between two digits of different classes, it is less sure than plain training makes it."""
    x, y = held_out().x[:200], held_out().y[:200]
    halves, differ = (x + x.flip(0)) / 2, y != y.flip(0)
    module, _ = fitted(Mixup())
    sure = [float(m(halves)[differ].softmax(1).amax(1).mean().detach()) for m in (module, plain())]
    assert sure[0] < sure[1] - 0.1, sure
    soft = [0.5 * (cross_entropy(m(halves), y) + cross_entropy(m(halves), y.flip(0))).mean() for m in (module, plain())]
    least = math.log(2)  # of any answer to two labels of a half each
    assert float(soft[0]) - least < 0.7 * (float(soft[1]) - least), soft
