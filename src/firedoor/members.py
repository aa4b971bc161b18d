"""Several networks as one: what a deployed ensemble answers with, and what is trained when members are trained together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Members"]


class Members(nn.Module):
    """Networks in `.members` with one answer."""

    def __init__(self, members: list[nn.Module], combine: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, or log mean softmax: (n, *shape) to (n, k)."""
        logits = torch.stack([m(x) for m in self.members])
        if self.combine == "logits":
            return logits.mean(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(self.members))
