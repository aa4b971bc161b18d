"""Training examples between those that public models give away: random mixtures of stored perturbations, at full strength."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firedoor import seed
from firedoor.defences.losses.stored import stored_crafts
from firedoor.errors import SpecError
from firedoor.protocols import Attack, Batch, Dataset, Model, Split, Store

__all__ = ["check_mixtures", "mixtures"]


def mixtures(
    sources: tuple[Model, ...], attacks: tuple[Attack, ...], data: Dataset, part: str, split: Split, store: Store
) -> Callable[[Batch], Tensor]:
    """A function from a batch to x' (n, *shape) = P(x + eps s(sum_k w_k d_k)), one draw of w per example and epoch.

    d_k is what one attack added to x on one source, for every pair of them; w is Dirichlet(1/2), the squares of normal numbers; s is the
    direction of steepest ascent in the attacks' norm (the sign for L-inf) and P the projection: every mixture is as strong as its
    parts. With one pair in L-inf, x' is x + eps sign(d). What is mixed are the images as stored; the batch's augmentation comes after.
    Errors: DataError if the crafts do not cover `split`.
    """
    stored = [stored_crafts(s, a, data, part, split, store) for s in sources for a in attacks]
    threat = attacks[0].threat
    place = {name: row for row, name in enumerate(split.ids)}

    def mix(batch: Batch) -> Tensor:
        x = split.x[[place[name] for name in batch.ids]]
        added = torch.stack([lookup(batch.ids) for lookup in stored], 1) - x[:, None]  # (n, K, *shape)
        weights = seed.normal(added.flatten(2)[:, :, 0]).square()
        direction = torch.einsum("nk,nk...->n...", weights, added)
        return batch.augment(threat.step(x, x, direction, threat.eps))

    return mix


def check_mixtures(who: str, sources: tuple[Model, ...], attacks: tuple[Attack, ...], part: str) -> None:
    """Errors: SpecError without a source or an attack, for attacks under different threats or targeted ones, and for an unknown part."""
    if not sources or not attacks:
        what = "source, got none. Name public ones in `sources`." if not sources else "attack, got none. Name some in `attacks`."
        raise SpecError(f"{who} needs at least one {what}")
    threats = {a.threat for a in attacks}
    if len(threats) > 1:
        raise SpecError(f"{who}: the attacks must have one threat, got {', '.join(sorted(map(str, threats)))}. Choose one for all.")
    if attacks[0].threat.targeted:
        raise SpecError(f"{who}: the attacks must be untargeted, got targeted=True. Remove it: labels are the ones to leave.")
    if part not in ("source", "target"):
        raise SpecError(f"{who}: part must be 'source' or 'target', got {part!r}. Evaluation examples never train.")
