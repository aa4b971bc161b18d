"""HopSkipJump: walks along the decision boundary towards x, and sees nothing of the model but its labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from firedoor import guard, seed
from firedoor.attacks.door import check_inputs, check_logits, need_whole
from firedoor.errors import SpecError
from firedoor.protocols import Access, Budget, Classifier, Returned, Semantics
from firedoor.threat import Threat

__all__ = ["HopSkipJump"]

STARTS = 19  # random points tried: noise, corners of the box and flat colours in turn; the last one is noise
COPIES = 10  # probes of each example that go through the model at once; fixed, so that a draw never depends on the batch
SEARCHED = 20  # halvings of a step before it is given up
KEPT = 8  # queries kept back for the search of the last step


@dataclass(frozen=True)
class HopSkipJump:
    """Bisect to the boundary; estimate its normal from the labels of probes sqrt(t) random points; step along it; again.

    The closest adversarial point that was met is returned where it lies inside the ball, and its projection, which fools nobody,
    where it does not: success at eps iff the distance found is at most eps. A model that answers with one-hot rows in the place of
    logits gives the same result. At most `queries` forward passes per example, counted for each on its own; what is left over is
    less than a bisection and a few probes. An example of which no random point is misclassified keeps the last one, projected;
    `from_start` begins elsewhere. An example that is already wrong ends next to x. Labels of logits that are not finite are never
    adversarial.
    Errors: SpecError for the fields, for other norms than Linf and L2, and for targeted threats, which no random point begins;
    DataError, naming the example, for x and y; ModelRefused for logits of a wrong shape.

    Family: query. Year: 2020. G: 0. Queries: 5000. Tier: T2.
    Reference: Chen et al. 2020, Alg. 1 and 2, arXiv:1904.02144.
    """

    threat: Threat
    queries: int = 5000
    probes: int = 100

    needs: ClassVar[Access] = Access.LABELS
    semantics: ClassVar[Semantics] = Semantics(budget=Budget.MINIMUM, returned=Returned.CLOSEST, stochastic=True, targeted=False)
    gradients: ClassVar[int] = 0

    def __post_init__(self) -> None:
        need_whole(self.queries, 1, "HopSkipJump: queries")
        need_whole(self.probes, 1, "HopSkipJump: probes")
        if self.threat.norm not in ("Linf", "L2"):
            raise SpecError(f"HopSkipJump needs an Linf or L2 threat, got {self.threat.norm}. Use one of them.")
        if self.threat.targeted:
            raise SpecError("HopSkipJump must not be targeted: no random point is of the class y_target. Use Square.")

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        return self._run(model, x, y, None)

    def from_start(
        self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], x_start: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n *shape"]:
        """The same walk, begun at x_start where that is adversarial, and at a random point elsewhere."""
        return self._run(model, x, y, x_start)

    def _run(self, model: Classifier, x: Tensor, y: Tensor, x_start: Tensor | None) -> Tensor:
        check_inputs(x, y)
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if len(x) == 0:
            return x
        with guard.no_side_effects(model), seed.own_streams(x, purpose="HopSkipJump"), torch.no_grad():
            asked = _Labels(model, y, self.queries)
            far, found = _begin(asked, x, None if x_start is None else x_start.detach())
            return self.threat.project(self._walk(asked, x, far, found), x)

    def _walk(self, asked: _Labels, x: Tensor, far: Tensor, found: Tensor) -> Tensor:
        pixels = x[0].numel()
        halvings = max(10, math.ceil((1.5 if self.threat.norm == "L2" else 2) * math.log2(pixels)))  # 1/theta
        gap = self.threat.size(far - x)
        at = self._bisected(asked, x, far, found, halvings)
        best, least = at, self.threat.size(at - x)
        reserve, t = halvings + KEPT, 1
        while bool((walking := found & (asked.left > reserve + KEPT)).any()):
            wanted = int(self.probes * math.sqrt(t))
            allowed = torch.where(walking, (asked.left - reserve).clamp_max(wanted), 0)
            radius = torch.full_like(gap, 0.1) if t == 1 else (gap / pixels).clamp_min(1e-6)
            normal = self.threat.steepest(_normal(asked, at, radius, allowed, wanted, self.threat.norm == "L2"))
            far = self._stepped(asked, x, at, normal, walking, t)
            gap = torch.where(walking, self.threat.size(far - x), gap)
            at = self._bisected(asked, x, far, walking, halvings)
            reached = self.threat.size(at - x)
            closer = walking & (reached < least)
            least, best = torch.where(closer, reached, least), torch.where(_rows(closer, x), at, best)
            t += 1
        return best

    def _stepped(self, asked: _Labels, x: Tensor, at: Tensor, normal: Tensor, walking: Tensor, t: int) -> Tensor:
        """The first adversarial point of at + xi normal, xi = distance / sqrt(t), halved again and again; `at` if there is none."""
        xi, far, pending = self.threat.size(at - x) / math.sqrt(t), at, walking
        for _ in range(SEARCHED):
            pending = pending & (asked.left > 0)
            if not bool(pending.any()):
                break
            tried = _boxed(at + _rows(xi, x) * normal)
            reached = asked(tried, pending)
            far = torch.where(_rows(reached, x), tried, far)
            pending, xi = pending & ~reached, xi / 2
        return far

    def _bisected(self, asked: _Labels, x: Tensor, far: Tensor, rows: Tensor, halvings: int) -> Tensor:
        """The adversarial end of the last interval between x and `far`; `far` itself where `rows` is False or no query is left."""
        low, high = torch.zeros_like(x.flatten(1)[:, 0]), torch.ones_like(x.flatten(1)[:, 0])
        for _ in range(halvings):
            pending = rows & (asked.left > 0)
            if not bool(pending.any()):
                break
            middle = (low + high) / 2
            adversarial = asked(self._between(x, far, middle), pending)
            high = torch.where(adversarial, middle, high)
            low = torch.where(pending & ~adversarial, middle, low)
        return torch.where(_rows(high < 1, x), self._between(x, far, high), far)

    def _between(self, x: Tensor, far: Tensor, share: Tensor) -> Tensor:
        """The projection of `far` onto the ball of that share of its distance, and, unlike that of the threat, of any size."""
        if self.threat.norm == "L2":
            return _boxed(x + _rows(share, x) * (far - x))
        radius = _rows(share * self.threat.size(far - x), x)
        return torch.minimum(torch.maximum(far, x - radius), x + radius)


class _Labels:
    """Which points are misclassified; `left`: the queries that each example still has."""

    def __init__(self, model: Classifier, y: Tensor, queries: int) -> None:
        self.model, self.y = model, y
        self.left = torch.full_like(y, queries)

    def __call__(self, points: Tensor, rows: Tensor) -> Tensor:
        """points: (m n, *shape), m for each example; rows: (m n,), which of them to ask for. False for the others."""
        answer = torch.zeros_like(rows)
        which = rows.nonzero()[:, 0]
        if len(which):
            of, copy = which % len(self.y), which // len(self.y)
            with seed.subset(of, self.left[of] * COPIES + copy):
                logits = self.model(points[which].clone())
            check_logits(logits, len(which), int(self.y.max()))
            self.left.index_add_(0, of, torch.full_like(of, -1))
            answer[which] = (logits.argmax(1) != self.y[of]) & torch.isfinite(logits).all(1)
        return answer


def _begin(asked: _Labels, x: Tensor, x_start: Tensor | None) -> tuple[Tensor, Tensor]:
    """A misclassified point per example, and where one was found."""
    far, found = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if x_start is not None:
        far, found = x_start, asked(x_start, ~found & (asked.left > 0))
    for i in range(STARTS):  # as many draws whatever is found: a later draw must not depend on the batch
        noise = seed.uniform(x, 0, 1)
        if i % 3 == 1:
            noise = (noise < 0.5).to(x.dtype)
        elif i % 3 == 2:
            noise = (noise[:, :, :1, :1] if x.dim() == 4 else noise[:, :1]).expand_as(x)
        pending = ~found & (asked.left > 0)
        far = torch.where(_rows(pending, x), noise, far)
        found = found | asked(noise, pending)
    return far, found


def _normal(asked: _Labels, at: Tensor, radius: Tensor, allowed: Tensor, wanted: int, gaussian: bool) -> Tensor:
    """The mean of u over adversarial probes at + radius u, minus that over the others: eq. 16. `allowed`: probes per example."""
    n, ones = len(at), [1] * (at.dim() - 1)
    sum_u, sum_fu, sum_f = torch.zeros_like(at), torch.zeros_like(at), torch.zeros_like(radius)
    for first in range(0, wanted, COPIES):
        m = min(COPIES, wanted - first)
        if not bool((allowed > first).any()):
            break
        centre, scale = at.repeat(m, *ones), _rows(radius.repeat(m), at)
        u = seed.normal(centre) if gaussian else seed.uniform(centre, -1, 1)
        u = u / _rows(u.flatten(1).square().sum(1).sqrt().clamp_min(1e-12), at)
        points = _boxed(centre + scale * u)
        rows = (torch.arange(first, first + m, device=at.device)[:, None] < allowed).flatten()
        f = (2 * asked(points, rows).to(at.dtype) - 1) * rows
        u = (points - centre) / scale * _rows(rows, at)
        sum_u = sum_u + u.view(m, *at.shape).sum(0)
        sum_fu = sum_fu + (_rows(f, at) * u).view(m, *at.shape).sum(0)
        sum_f = sum_f + f.view(m, n).sum(0)
    mean = sum_f / allowed.clamp_min(1)
    alike = mean.abs() == 1
    return torch.where(_rows(alike, at), _rows(mean, at) * sum_u, sum_fu - _rows(mean, at) * sum_u)


def _boxed(points: Tensor) -> Tensor:
    return points.clamp_min(0).clamp_max(1)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))
