"""What the losses of jointly trained members share: who the members are, their own losses, and how alike their gradients are.

All of them add the members' losses up, so that each member learns at the lr that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from firedoor.errors import SpecError
from firedoor.losses import cross_entropy

__all__ = ["cross_entropies", "input_gradients", "layers_of", "members_of", "pairwise_cosines", "summed"]

FAINT = 1e-20  # shorter gradients have no direction: their derivatives would leave float32


def members_of(module: nn.Module, who: str) -> list[nn.Module]:
    """The networks in `.members`. Errors: SpecError, naming the loss `who`, if there are none."""
    members = getattr(module, "members", None)
    if not isinstance(members, nn.ModuleList) or len(members) == 0:
        raise SpecError(
            f"{who} trains several networks together and needs a module with `.members`, got {type(module).__name__}. "
            "Train the architecture Committee, which holds one or more."
        )
    return list(members)


def layers_of(member: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Its convolutions and linear layers, in the order in which it lists them; the last gives the logits."""
    return [m for m in member.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def cross_entropies(
    members: Sequence[nn.Module], x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]
) -> list[Float[Tensor, " n"]]:
    """The cross-entropy of each member, per example."""
    return [cross_entropy(m(x), y) for m in members]


def summed(losses: Sequence[Float[Tensor, " n"]]) -> Tensor:
    """Mean over the batch, sum over members."""
    return torch.stack([loss.mean() for loss in losses]).sum()


def input_gradients(losses: Sequence[Float[Tensor, " n"]], x: Float[Tensor, "n *shape"]) -> list[Float[Tensor, "n d"]]:
    """The gradient of each loss by x, per example and flat, itself differentiable.

    It is that of the sum over the batch. In training mode, batch normalisation lets an example's gradient see the others.
    """
    return [torch.autograd.grad(loss.sum(), x, create_graph=True)[0].flatten(1) for loss in losses]


def pairwise_cosines(gradients: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "pairs n"]:
    """Cosine of each pair of members, per example; 0 where a gradient vanishes. Needs two members or more."""
    units = [_unit(g) for g in gradients]
    return torch.stack([(a * b).sum(1) for a, b in combinations(units, 2)])


def _unit(g: Tensor) -> Tensor:
    """Rows of length 1, scaled before they are squared; zero, without a derivative, where a row is shorter than FAINT."""
    largest = g.detach().abs().amax(1, keepdim=True)
    alive = largest > FAINT
    scaled = torch.where(alive, g, 1) / torch.where(alive, largest, 1)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(alive, scaled / length, 0)
