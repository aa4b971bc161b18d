"""Training of a network that tells attacked images from others, on what public sources give away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.losses.mixtures import check_mixtures, mixtures
from firedoor.errors import SpecError
from firedoor.protocols import Attack, Batch, Classifier, Dataset, LossFn, Model, Split, Store, Wrapper

__all__ = ["Alarm"]


@dataclass(frozen=True)
class Alarm:
    """The logistic loss of one output: the network's first logit must be positive on attacked images, and negative on clean ones.

    Its other outputs, as many as there are classes less one, are not used. Every image of either kind is handled as images are: it
    goes through one of `handling` (such as JPEG at some quality, or Noise), or through none, drawn per image and epoch. Without that a
    network learns that somebody has touched the pixels, which is easier than to tell an attack, and which an attacker undoes by saving
    the image once more. Each example shows clean, and a mixture of what `attacks` add to it on `sources`, as in Firebreak; what was
    added is multiplied by a number drawn from [weakest, 1], so that half an attack is one too. 2 passes.
    Errors: SpecError for no source, no attack, attacks under different threats, `weakest` outside (0, 1].

    Family: adversarial training. Year: 2017.
    Reference: Metzen et al. 2017, sec. 3, arXiv:1702.04267, here on mixtures of transferred examples, and handled ones.
    """

    sources: tuple[Model, ...]
    attacks: tuple[Attack, ...]
    data: Dataset
    handling: tuple[Wrapper, ...] = ()
    weakest: float = 1.0
    part: Literal["source", "target"] = "target"

    def __post_init__(self) -> None:
        check_mixtures("Alarm", self.sources, self.attacks, self.part)
        if not 0 < self.weakest <= 1:
            raise SpecError(f"Alarm: weakest must be in (0, 1], got {self.weakest}. Try 0.5, or 1 for whole attacks only.")

    def start(self, store: Store, split: Split) -> LossFn:
        """Craft, or load, the examples of every source. Errors: DataError if they do not cover `split`."""
        mix = mixtures(self.sources, self.attacks, self.data, self.part, split, store)
        handlings = [_handling(w, store) for w in self.handling]

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            n = len(batch.x)
            attacked = mix(batch)
            share = seed.uniform(batch.x.reshape(n, -1)[:, :1], self.weakest, 1).view(-1, *[1] * (batch.x.dim() - 1))
            x = torch.cat([batch.x, batch.x + share * (attacked - batch.x)])
            which = seed.integers(x, len(handlings) + 1)
            for i, handled in enumerate(handlings):
                rows = (which == i + 1).nonzero()[:, 0]
                if len(rows):
                    with seed.subset(rows % n, rows // n):
                        x[rows] = handled(x[rows])
            x = (255 * x).round().clamp(0, 255) / 255 if self.data.eight_bit else x.clamp(0, 1)
            alarm = module(x)[:, 0]
            kind = torch.zeros_like(alarm)
            kind[n:] = 1
            return F.binary_cross_entropy_with_logits(alarm, kind)

        return loss


def _handling(wrapper: Wrapper, store: Store) -> Classifier:
    """What the wrapper makes of an image, without a model behind it."""
    return wrapper.wrap(lambda x: x, store)
