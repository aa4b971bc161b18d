"""Logits that hardly change with the pixels: the Jacobian of the whole network is made small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.errors import SpecError
from firedoor.losses import cross_entropy
from firedoor.protocols import Batch, LossFn, Split, Store

__all__ = ["Jacobian"]


@dataclass(frozen=True)
class Jacobian:
    """CE + lam |J|_F^2, J the derivatives of all K logits by all pixels of an example; mean over the batch.

    |J|_F^2 is estimated without bias by K |v J|^2, one random v of length 1 per example and epoch. The paper's lam is twice ours. It
    depends on the image size: scan three decades. In training mode, batch normalisation lets an example's derivatives see the others.
    One forward pass, differentiated twice: two to three times the time of plain training. lam 0 is plain training.
    Errors: SpecError for a negative lam.

    Family: regularisation. Year: 2019.
    Reference: Hoffman et al. 2019, sec. 2, arXiv:1908.02729.
    """

    lam: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise SpecError(f"Jacobian: lam must be 0 or more and finite, got {self.lam}. Try 0.01.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Nothing to load."""

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            if self.lam == 0:
                return cross_entropy(module(batch.x), batch.y).mean()
            x = batch.x.detach().requires_grad_()
            logits = module(x)
            v = seed.normal(logits.detach())
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-12)
            (projected,) = torch.autograd.grad((v * logits).sum(), x, create_graph=True)
            size = logits.shape[1] * projected.flatten(1).square().sum(1)
            total: Tensor = (cross_entropy(logits, batch.y) + self.lam * size).mean()
            return total

        return loss
