"""What docstrings say of the cost, held against the recipes themselves; and two facts of the loop that no contract asks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from victims import TinyCNN, images

from firedoor import catalogue, seed
from firedoor.attacks import DI_FGSM, PGD
from firedoor.contracts import victims as fixtures
from firedoor.threat import L2, Linf

CNN = TinyCNN().eval()
X, Y = images(6), torch.tensor([0, 1, 2, 3, 0, 1])
LISTED = [e for e in catalogue.entries("attacks") if e.module.startswith("firedoor.attacks.")]


@pytest.mark.parametrize("entry", LISTED, ids=lambda e: e.name)
def test_docstring_gives_the_gradients_of_the_defaults(entry: catalogue.Entry) -> None:
    assert entry.tier
    assert entry.year
    assert entry.family
    if entry.G is None:
        assert entry.name in ("ShuffledDelta", "Primed"), "only those that hold another attack have no number of their own"
        return
    cls = catalogue.find("attacks", entry.name)
    pool = {"data": fixtures.Shapes()} if "data" in getattr(cls, "__dataclass_fields__", cls.__annotations__) else {}
    threat = {"CW": L2(0.1), "DDN": L2(0.1)}.get(entry.name, Linf(0.1, targeted=entry.family == "targeted"))
    attack = cls(threat, **pool)
    assert attack.gradients == entry.G
    if entry.family == "query":
        assert attack.queries == entry.queries > 0


def test_copies_of_diverse_inputs_draw_independently() -> None:
    """Five copies of one draw would be one copy."""
    with seed.streams(0, list("abcdef")):
        one = DI_FGSM(Linf(0.1), p=1.0, steps=1, copies=1)(CNN, X, Y)
    with seed.streams(0, list("abcdef")):
        five = DI_FGSM(Linf(0.1), p=1.0, steps=1, copies=5)(CNN, X, Y)
    assert not torch.equal(one, five)


def test_best_iterate_of_all_restarts_is_kept() -> None:
    threat = Linf(0.3)
    loss = lambda x: nn.functional.cross_entropy(CNN(x), Y, reduction="none").detach()  # noqa: E731
    with seed.streams(0, list("abcdef")):
        best = loss(PGD(threat, steps=8, restarts=4, keep="best")(CNN, X, Y))
    with seed.streams(0, list("abcdef")):
        first = loss(PGD(threat, steps=8, restarts=1, keep="best")(CNN, X, Y))
    with seed.streams(0, list("abcdef")):
        last = loss(PGD(threat, steps=8)(CNN, X, Y))
    assert (first >= last - 1e-12).all()
    assert (best >= first - 1e-12).all()
    assert (best > last + 1e-9).any()
