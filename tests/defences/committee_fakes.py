"""Committees for the tests of jointly trained losses: linear ones with known answers, and small ones trained on digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from defence_fakes import DictStore
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures.committee import Committee
from firedoor.architectures.mlp import MLP
from firedoor.data.digits import Digits
from firedoor.defences.fit import Fit
from firedoor.defences.losses.committee_terms import cross_entropies, input_gradients, pairwise_cosines
from firedoor.members import Members
from firedoor.protocols import Architecture, Batch, Split
from firedoor.threat import Linf

DIGITS = Digits()
MLPS = (MLP(32, 2),) * 3
MIXED: tuple[Architecture, ...] = (MLP(32, 2), MLP(64, 1, "silu"))


def numbers(*shape: int, key: str = "") -> Tensor:
    """Fixed uniform numbers of [0,1)."""
    with seed.streams(0, [str(i) for i in range(shape[0])], purpose=key):
        return seed.uniform(torch.zeros(shape), 0, 1)


def a_batch(x: Tensor, y: Tensor, epoch: int = 0) -> Batch:
    return Batch(x, y, [str(i) for i in range(len(x))], epoch)


def linear_members(*weights: Tensor) -> Members:
    """One linear member without bias per weight (k, d)."""
    members: list[nn.Module] = []
    for w in weights:
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False).to(w.dtype)
        with torch.no_grad():
            layer.weight.copy_(w)
        members.append(layer)
    return Members(members, "probabilities")


def value_of(loss: Any, module: nn.Module, batch: Batch) -> Tensor:
    """The live loss of one batch, with the random numbers of a run."""
    with seed.streams(0, batch.ids, draw=batch.epoch, purpose="fit"):
        out: Tensor = loss.start(DictStore(), Split(batch.x, batch.y, tuple(batch.ids)))(module, batch)
    return out


@lru_cache(maxsize=16)
def trained(loss: Any, members: tuple[Architecture, ...] = MLPS, n: int = 600, epochs: int = 12, lr: float = 0.1) -> Members:
    """A committee trained on n digits."""
    with seed.forked(0, "weights"):
        module = Committee(members).build(DIGITS.shape, 10)
    assert isinstance(module, Members)
    Fit(loss=loss, epochs=epochs, batch_size=64, lr=lr).train(module, DIGITS.split("target")[:n], DictStore(), 0)
    return module


def held_out() -> Split:
    return DIGITS.split("evaluation")


def accuracy(module: nn.Module) -> float:
    """Share of 400 held-out digits that the module gets right."""
    with torch.no_grad():
        return float((module(held_out().x).argmax(1) == held_out().y).float().mean())


def weakest(module: Members) -> float:
    """The accuracy of the member that is right least often: losses can buy diversity by giving one up, and the mean does not show it."""
    return min(accuracy(member) for member in module.members)


def cosines(module: Members, n: int = 200) -> Tensor:
    """Pairwise cosine of the members' input gradients on held-out digits, (pairs, n)."""
    x, y = held_out().x[:n].clone().requires_grad_(), held_out().y[:n]
    return pairwise_cosines(input_gradients(cross_entropies(list(module.members), x, y), x)).detach()


def transfer(module: Members, eps: float = 0.15, n: int = 200) -> float:
    """Mean over ordered pairs of members: the second's errors under PGD-10 on the first, among what it gets right on x."""
    x, y, threat, rates = held_out().x[:n], held_out().y[:n], Linf(eps), []
    for source in module.members:
        x_adv = x
        for _ in range(10):
            x_adv = x_adv.detach().requires_grad_()
            (g,) = torch.autograd.grad(cross_entropies([source], x_adv, y)[0].sum(), x_adv)
            x_adv = threat.step(x_adv.detach(), x, g, eps / 4)
        for target in module.members:
            if target is not source:
                right = target(x).argmax(1) == y
                rates.append(float((target(x_adv).argmax(1) != y)[right].float().mean()))
    return sum(rates) / len(rates)
