"""One perturbation for all examples, learned on examples that are not attacked; and how attacks that learn read their data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, losses, seed
from firedoor.attacks.door import check_inputs, check_logits, need_number, need_whole
from firedoor.errors import DataError, SpecError
from firedoor.protocols import Access, Classifier, Dataset, GradientFn, Semantics
from firedoor.threat import Threat

__all__ = ["Universal", "batches", "check_learned", "summed_gradient"]


@dataclass(frozen=True)
class Universal:
    """x + delta, with the one delta that most raises the loss of the source over one part of `data`.

    delta <- project(delta + step_size * steepest(sum of gradients at x_i + delta)) over `steps` batches, from zero; step_size=None
    is 2.5 eps/steps. The loss of an example stops counting at `cap`, so that the sum does not chase the ones that are lost anyway;
    labels are those of the data, so its classes must be the source's. No pixel of delta goes beyond 1/2, which the box of a grey
    image allows. delta is learned anew at each call, and depends on the source, the data, the dtype of x and the fields, never on the
    batch: nothing is kept between calls. The attack itself then asks the source nothing (G 0); what learning costs each call is
    `preparation`. It knows no y_target, so a targeted threat is refused, and so is L0.
    Errors: SpecError for the fields and for data of another shape than x; DataError for an empty part and unsound x and y;
    ModelRefused for logits of a wrong shape.

    Family: universal. Year: 2017. G: 0. Tier: T2.
    Reference: Moosavi-Dezfooli et al. 2017, Alg. 1, arXiv:1610.08401; learned by gradient ascent as in Shafahi et al. 2018,
    arXiv:1811.11304.
    """

    threat: Threat
    data: Dataset
    part: Literal["source", "development"] = "development"
    steps: int = 100
    batch_size: int = 50
    step_size: float | None = None
    cap: float = 9.0
    seed: int = 0

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics(targeted=False)
    gradients: ClassVar[int] = 0
    queries: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_learned(self.threat, self.part, "Universal")
        need_whole(self.steps, 1, "Universal: steps")
        need_whole(self.batch_size, 1, "Universal: batch_size")
        need_whole(self.seed, 0, "Universal: seed")
        need_number(self.cap, 0, math.inf, "Universal: cap")
        if self.step_size is not None:
            need_number(self.step_size, 0, math.inf, "Universal: step_size")

    @property
    def preparation(self) -> int:
        """Forward+backward passes of training examples that each call takes, whatever its batch."""
        return self.steps * self.batch_size if self.threat.eps > 0 else 0

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0 or self.threat.eps == 0:
            return x
        with guard.no_side_effects(model):
            return self.threat.project(x + self._delta(model, x, int(y.max())), x)

    def _delta(self, model: Classifier, like: Tensor, largest: int) -> Tensor:
        """(1, *shape)."""
        step_size = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        middle = torch.full_like(like[:1], 0.5)  # projected around it, the box is as far as it can be
        delta = torch.zeros_like(middle)
        rounds = batches(self.data, self.part, like, self.steps, self.batch_size, self.seed, "Universal")
        for t, (x, y, ids) in enumerate(rounds):

            def loss(x_adv: Tensor, y: Tensor = y) -> Tensor:
                logits = model(x_adv.clone())
                check_logits(logits, len(x_adv), max(largest, int(y.max())))
                return losses.cross_entropy(logits, y).clamp_max(self.cap)

            moved = x + delta
            x_adv = moved.clamp_min(0).clamp_max(1)
            with seed.streams(self.seed, ids, draw=t, purpose="Universal"):
                g = summed_gradient(loss, x_adv) * (x_adv == moved)  # a pixel at the edge of the box does not follow delta
            g = g.sum(0, keepdim=True)
            if self.threat.norm == "L1":  # the only norm here whose steps must see the box
                delta = self.threat.step(middle + delta, middle, g, step_size) - middle
            else:
                delta = self.threat.project(middle + (delta + step_size * self.threat.steepest(g)), middle) - middle
        return delta


def batches(
    data: Dataset, part: str, like: Tensor, steps: int, size: int, key: int, who: str
) -> Iterator[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """`steps` times `size` examples of a part: x in the dtype and on the device of `like`, y, ids. Epochs are shuffled by `key`.

    Errors: SpecError if the inputs have another shape than `like`; DataError if the part is empty.
    """
    split = data.split(part)
    if len(split) == 0:
        raise DataError(f"{who} needs examples in part {part!r} of its data, got none. Use another part, or a larger one.")
    if split.x.shape[1:] != like.shape[1:]:
        raise SpecError(
            f"{who}: data must have inputs of shape {tuple(like.shape[1:])}, as x, got {tuple(split.x.shape[1:])}. Use other data."
        )
    queue, epoch = torch.zeros(0, dtype=torch.int64), 0
    for _ in range(steps):
        while len(queue) < size:
            queue = torch.cat((queue, torch.from_numpy(seed.order(len(split), key, f"{who} {epoch}"))))
            epoch += 1
        rows, queue = queue[:size], queue[size:]
        ids = tuple(split.ids[int(i)] for i in rows)
        yield split.x[rows].to(like.device, like.dtype), split.y[rows].to(like.device), ids


def summed_gradient(loss: GradientFn, x: Tensor) -> Tensor:
    """The gradient of the summed loss at x, per example; zero where it is missing or not finite."""
    leaf = x.detach().requires_grad_()
    total = loss(leaf).sum()
    if not total.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(x) if g is None else torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)


def check_learned(threat: Threat, part: str, who: str) -> None:
    """Errors: SpecError for what no perturbation that is learned beforehand can do, and for a part that is not the attacker's."""
    if threat.targeted:
        raise SpecError(f"{who}: the threat must not be targeted, got {threat!r}: it learns before it sees a y_target. Drop it.")
    if threat.norm == "L0":
        raise SpecError(
            f"{who}: the threat must be Linf, L2 or L1, got {threat!r}: there is no published L0 form. Use another norm."
        )
    if part not in ("source", "development"):
        raise SpecError(
            f"{who}: part must be 'source' or 'development', got {part!r}: the others belong to the defender. Choose one."
        )
