"""Certificates of randomised smoothing: around each image, an L2 radius in which no attack can change the smoothed answer.

They hold for the majority under infinitely many draws, each with probability 1 - alpha over the draws made here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from firedoor import device, guard
from firedoor import seed as seeds
from firedoor.errors import DataError, SpecError
from firedoor.intervals import Estimate, wilson
from firedoor.protocols import Classifier, Dataset, Model, Split, Store
from firedoor.spec import fingerprint

__all__ = ["Certificates", "Certified", "certified_accuracy", "largest_radius", "linf_note", "lower_bound"]

NUMBERS = 2_000_000  # of noise at a time
DRAWS = 500  # at a time, at most


class Certified(NamedTuple):
    """labels (n,) int64, -1 where it abstains; radii (n,) float64, L2 on the [0,1] pixel scale, 0 where it abstains."""

    labels: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True)
class Certificates:
    """CERTIFY of Cohen et al. 2019 (sec. 3.2.2, arXiv:1902.02918) on the examples start..stop of one part of `data`.

    `model` is the network under the smoothing, which sees x + N(0, sigma^2). `n0` draws choose a label; of `n` other draws the share
    with that label is bounded from below at level `alpha` (Clopper-Pearson, one-sided); the radius is sigma Phi^-1(bound), and where
    the bound is at most 1/2 it abstains. Draws without a finite answer count for no label. An example's draws depend on its id,
    `seed` and the shape of the images, so that neither its neighbours nor the cut into start..stop matter.
    Errors: SpecError for the fields; DataError where start..stop holds no example.
    """

    model: Model
    data: Dataset
    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    part: str = "evaluation"
    start: int = 0
    stop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise SpecError(
                f"Certificates: sigma must be positive, got {self.sigma}. Use that of the training noise, such as 0.25."
            )
        if not 0 < self.alpha < 1:
            raise SpecError(f"Certificates: alpha must lie between 0 and 1, got {self.alpha}. Try 0.001.")
        fewest = math.floor(-math.log2(self.alpha)) + 1  # n votes without dissent bound p by alpha^(1/n)
        if self.n < fewest:
            raise SpecError(
                f"Certificates: n must be {fewest} or more for alpha {self.alpha:g}, got {self.n}: it would always abstain. Try 10000."
            )
        if self.n0 < 1:
            raise SpecError(f"Certificates: n0 must be 1 or more, got {self.n0}. Try 100.")

    def load(self, store: Store, progress: Callable[[int, int], None] | None = None) -> Certified:
        """Labels and radii, from the store or found now; `progress(done, total)` follows each example."""
        tensors, _ = store.get("certificates", self.inputs(), lambda: self._make(store, progress))
        return Certified(tensors["labels"].numpy(), tensors["radii"].numpy())

    def seconds(self, store: Store) -> float:
        """What the work took when it was done."""
        return float(str(store.get("certificates", self.inputs(), lambda: self._make(store, None))[1]["seconds"]))

    def inputs(self) -> dict[str, object]:
        """All that labels and radii depend on."""
        return {
            "model": fingerprint(self.model),
            "data": self.data.digest(),
            "sigma": self.sigma,
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "part": self.part,
            "start": self.start,
            "stop": self.stop,
            "seed": self.seed,
        }

    def _make(self, store: Store, progress: Callable[[int, int], None] | None) -> tuple[dict[str, Tensor], dict[str, object]]:
        split: Split = self.data.split(self.part)[self.start : self.stop]
        if len(split) == 0:
            raise DataError(f"certificates need an example, got none in {self.start}..{self.stop}. Part {self.part!r} is shorter.")
        live = store.live(self.model)
        began, found = time.perf_counter(), list[tuple[int, float, int]]()
        with guard.no_side_effects(live), torch.no_grad():
            for i, name in enumerate(split.ids):
                found.append(self._certify(live, split.x[i : i + 1].to(device.current()), name))
                if progress is not None:
                    progress(i + 1, len(split))
        labels, radii, counts = zip(*found, strict=True)
        tensors = {"labels": torch.tensor(labels), "radii": torch.tensor(radii, dtype=torch.float64), "votes": torch.tensor(counts)}
        return tensors, {"seconds": time.perf_counter() - began}

    def _certify(self, model: Classifier, x: Tensor, name: str) -> tuple[int, float, int]:
        """Label, radius, and for how many of n draws the chosen label was given."""
        from scipy.special import ndtri

        label = int(self._votes(model, x, name, self.n0, "choose").argmax())
        votes = int(self._votes(model, x, name, self.n, "bound")[label])
        p = lower_bound(votes, self.n, self.alpha)
        return (label, self.sigma * float(ndtri(p)), votes) if p > 0.5 else (-1, 0.0, votes)

    def _votes(self, model: Classifier, x: Tensor, name: str, n: int, purpose: str) -> Tensor:
        """(k,) how many of n draws got each label."""
        size = max(1, min(DRAWS, NUMBERS // x.numel()))
        votes = torch.zeros((), dtype=torch.int64)
        for block in range(-(-n // size)):
            copies = x.expand(min(size, n - block * size), *x.shape[1:])
            with seeds.streams(self.seed, [name], draw=block, purpose=f"certify {purpose}"):
                logits = model(copies + seeds.normal(copies, self.sigma)).cpu()
            finite = torch.isfinite(logits).all(1)
            votes = votes + torch.bincount(logits.argmax(1)[finite], minlength=logits.shape[1])
        return votes


def lower_bound(k: int, n: int, alpha: float) -> float:
    """The exact one-sided bound: k of n or more has probability alpha at that p. Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404."""
    from scipy.special import betaincinv

    return float(betaincinv(k, n - k + 1, alpha)) if k else 0.0


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """What n draws without dissent certify; no radius is larger."""
    from scipy.special import ndtri

    return sigma * float(ndtri(lower_bound(n, n, alpha)))


def certified_accuracy(y: np.ndarray, labels: np.ndarray, radii: np.ndarray, r: float) -> Estimate:
    """Share of all examples with the right label and a radius of r or more; an abstention is wrong. Wilson 95 %."""
    return wilson(int(((labels == y) & (radii >= r)).sum()), len(y))


def linf_note(shape: tuple[int, ...], eps: float, radius: float) -> str:
    """What an L2 radius says of the Linf ball of size eps, for inputs of this shape; both on the [0,1] pixel scale."""
    d = math.prod(shape)
    reach, inner = eps * math.sqrt(d), radius / math.sqrt(d)
    size = "x".join(map(str, shape))
    text = (
        f"An Linf ball of {eps:.4f} ({255 * eps:.3g}/255) in {size} reaches L2 {reach:.2f}. "
        f"An L2 ball of {radius:.2f} contains the Linf ball of {radius:.2f} / sqrt({d}) = {inner:.4f} ({255 * inner:.3g}/255) only. "
    )
    return text + ("So it covers that Linf ball." if radius >= reach else f"So it does not cover Linf {eps:.4f}.")
