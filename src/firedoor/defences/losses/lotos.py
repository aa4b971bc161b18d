"""Members whose layers do not amplify the same directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.committee_terms import cross_entropies, layers_of, members_of, summed
from firedoor.errors import SpecError
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["LOTOS", "cross_gains"]

Layer = nn.Conv2d | nn.Linear
Shapes = dict[nn.Module, tuple[int, ...]]


@dataclass(frozen=True)
class LOTOS:
    """M (mean_i CE(f_i(x), y) + lam / (M (M-1)) sum over i != j and layers of relu(|A_i v_j| - mal)), v_j of length 1.

    Layerwise orthogonalisation, M times the paper's loss, so that members learn at the lr they would have alone. A_i is the linear
    part of a convolution or linear layer of member i, on inputs of the size it gets; v_j is what the layer at the same place of
    member j amplifies most, by `iterations` power iterations from a fixed start, and taken as constant. Where members differ in
    architecture, places count only if their inputs hold equally many numbers: at least the first does, which sees the pixels.
    The paper also clips each layer's largest singular value, at 1 for these defaults, which is not part of the loss. Weaker with
    batch normalisation. One pass. lam 0, or one member, is JointCrossEntropy.
    Errors: SpecError for a field out of range, and, in training, without `.members` or without places that two members share.

    Family: ensemble. Year: 2025.
    Reference: Ebrahimpour-Boroojeny et al. 2025, arXiv:2410.05136.
    """

    lam: float = 0.05
    mal: float = 0.8
    iterations: int = 10

    def __post_init__(self) -> None:
        for name, value in (("lam", self.lam), ("mal", self.mal)):
            if not 0 <= value < math.inf:
                raise SpecError(f"LOTOS: {name} must be 0 or more and finite, got {value}. Try lam 0.05 and mal 0.8.")
        if self.iterations < 1:
            raise SpecError(f"LOTOS: iterations must be 1 or more, got {self.iterations}. Try 10.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            members = members_of(module, "LOTOS")
            if self.lam == 0 or len(members) == 1:
                return summed(cross_entropies(members, batch.x, batch.y))
            with _input_shapes(members) as shapes:
                losses = cross_entropies(members, batch.x, batch.y)
            with torch.autocast(batch.x.device.type, enabled=False):  # a direction is worth nothing in half precision
                excess = (cross_gains(members, shapes, self.iterations) - self.mal).relu().sum()
            return summed(losses) + self.lam / (len(members) - 1) * excess

        return loss


def cross_gains(members: Sequence[nn.Module], shapes: Shapes, iterations: int = 10) -> Tensor:
    """|A_i v_j| of every ordered pair of members and every place that they share, (pairs and places,).

    `shapes`: the shape of one input of each layer. Errors: SpecError if two members share no place.
    """
    places = [[layer for layer in layers_of(m) if layer in shapes] for m in members]
    tops = [[_top(layer, shapes[layer], iterations) for layer in layers] for layers in places]
    gains: list[Tensor] = []
    for i, j in permutations(range(len(members)), 2):
        shared = [
            _length(_linear(a, v.reshape(1, *shapes[a])))
            for a, v in zip(places[i], tops[j], strict=False)
            if v.numel() == math.prod(shapes[a])
        ]
        if not shared:
            raise SpecError(
                f"LOTOS compares layers of the same place and input size, and members {i} and {j} share none. "
                "Give them architectures that begin alike."
            )
        gains += shared
    return torch.stack(gains)


@contextmanager
def _input_shapes(members: Sequence[nn.Module]) -> Iterator[Shapes]:
    """Inside, the layers that the members use write down the shape of one input; of a linear layer, its last dimension."""
    shapes: Shapes = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape[1:] if isinstance(layer, nn.Conv2d) else inputs[0].shape[-1:])

    hooks = [layer.register_forward_pre_hook(note) for m in members for layer in layers_of(m)]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


def _top(layer: Layer, shape: tuple[int, ...], iterations: int) -> Tensor:
    """What the layer amplifies most, (1, *shape) of length 1: each step takes v to A^T A v, the gradient of |A v|^2 / 2."""
    v = _begin(shape).to(layer.weight)
    frozen = layer.weight.detach()
    for _ in range(iterations):
        v = v.detach().requires_grad_()
        (v,) = torch.autograd.grad(_linear(layer, v, frozen).square().sum() / 2, v)
        v = v / _length(v).clamp_min(1e-30)
    return v.detach()


@lru_cache(maxsize=256)
def _begin(shape: tuple[int, ...]) -> Tensor:
    with seed.streams(0, ["LOTOS"]):
        return seed.normal(torch.zeros(1, *shape))


def _linear(layer: Layer, v: Tensor, weight: Tensor | None = None) -> Tensor:
    """The layer without its bias."""
    weight = layer.weight if weight is None else weight
    if isinstance(layer, nn.Linear):
        return F.linear(v, weight)
    out: Tensor = layer._conv_forward(v, weight, None)
    return out


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v)
    return length
