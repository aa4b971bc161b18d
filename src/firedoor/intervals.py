"""Intervals and tests for counts: how far a rate can be trusted, and when two arms on the same examples differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "clopper_pearson", "holm", "mcnemar", "newcombe", "significant", "wilson"]

Z = 1.959963984540054  # two-sided 95 %
LEAST_EFFECT = 0.005
LEAST_DISCORDANT = 8
ALPHA = 0.01


@dataclass(frozen=True)
class Estimate:
    """A rate, its 95 % interval and its denominator."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """As in `Estimate(0.412, 0.382..0.443, n=1000)`: digits as the interval's width allows."""
        places = 2 if self.n < 100 else 3
        return f"Estimate({self.value:.{places}f}, {self.low:.{places}f}..{self.high:.{places}f}, n={self.n})"

    __repr__ = __str__


def wilson(k: float, n: int) -> Estimate:
    """k of n with the Wilson score interval. Reference: Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def clopper_pearson(k: int, n: int) -> Estimate:
    """k of n with the exact interval, for promises and verdicts. Reference: Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404."""
    from scipy.special import betaincinv

    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return Estimate(k / n, low, high, n)


def newcombe(only_a: int, only_b: int, both: int, neither: int) -> Estimate:
    """Difference of two paired rates, a minus b, with Newcombe's score interval. Reference: Newcombe 1998, method 10, doi:
    10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C."""
    n = only_a + only_b + both + neither
    a, b = wilson(both + only_a, n), wilson(both + only_b, n)
    product = (both + only_a) * (neither + only_b) * (both + only_b) * (neither + only_a)
    together: float = both * neither - only_a * only_b
    together = max(0.0, together - n / 2) if together > 0 else together  # method 10's correction of the correlation
    phi = together / math.sqrt(product) if product else 0.0
    d = a.value - b.value
    down = (a.value - a.low) ** 2 - 2 * phi * (a.value - a.low) * (b.high - b.value) + (b.high - b.value) ** 2
    up = (a.high - a.value) ** 2 - 2 * phi * (a.high - a.value) * (b.value - b.low) + (b.value - b.low) ** 2
    return Estimate(d, max(-1.0, d - math.sqrt(max(0.0, down))), min(1.0, d + math.sqrt(max(0.0, up))), n)


def mcnemar(gained: int, lost: int, one_sided: bool = False) -> float:
    """Exact p of `gained` against `lost` discordant examples. One-sided: that gained exceeds lost."""
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(gained, n + 1)) / 2**n
    if one_sided:
        return float(tail)
    other = sum(math.comb(n, i) for i in range(lost, n + 1)) / 2**n
    return float(min(1.0, 2 * min(tail, other)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values. Reference: Holm 1979, Scand. J. Statist. 6."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def significant(gained: int, lost: int, n: int) -> bool:
    """Exact one-sided McNemar p < .01, a net effect over .5 points of `n` examples, and at least 8 discordant ones."""
    enough = gained + lost >= LEAST_DISCORDANT and gained - lost > LEAST_EFFECT * n
    return enough and mcnemar(gained, lost, one_sided=True) < ALPHA
