"""Query attacks by their papers' names that are the loop of `iterated.py` with an estimated gradient, and nothing else."""

from __future__ import annotations

from typing import Literal

from firedoor.attacks.estimators.nes import AntitheticGaussian
from firedoor.attacks.estimators.spsa import SimultaneousPerturbation
from firedoor.attacks.iterated import Iterated
from firedoor.threat import Threat

__all__ = ["NES", "SPSA"]


def NES(
    threat: Threat,
    steps: int = 10,
    step_size: float | None = None,
    n: int = 50,
    sigma: float = 0.001,
    objective: Literal["cross_entropy", "margin"] = "cross_entropy",
) -> Iterated:
    """I_FGSM on a gradient estimated from n antithetic pairs of scores per step: 2 n steps queries. step_size=None is eps/steps.

    Family: query. Year: 2018. G: 0. Queries: 1000. Tier: T2.
    Reference: Ilyas et al. 2018, sec. 2.1, arXiv:1804.08598.
    """
    return Iterated(threat, steps, step_size, (), objective, estimator=AntitheticGaussian(n, sigma))


def SPSA(
    threat: Threat,
    steps: int = 10,
    step_size: float | None = None,
    n: int = 128,
    sigma: float = 0.01,
    objective: Literal["cross_entropy", "margin"] = "margin",
) -> Iterated:
    """I_FGSM on a gradient estimated from n pairs of random signs per step: 2 n steps queries. step_size=None is eps/steps.

    The paper steps with Adam on the margin; here the step is the loop's.

    Family: query. Year: 2018. G: 0. Queries: 2560. Tier: T2.
    Reference: Uesato et al. 2018, sec. 4.1, arXiv:1802.05666.
    """
    return Iterated(threat, steps, step_size, (), objective, estimator=SimultaneousPerturbation(n, sigma))
