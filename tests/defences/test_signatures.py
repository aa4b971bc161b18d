"""What each algorithm is known for, on digits and small networks: more than its formula, less than a study."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from committee_fakes import DIGITS, held_out
from defence_fakes import DictStore
from digit_fakes import NET, Live, accuracy, plain, robust_accuracy
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import MLP, SmallCNN
from firedoor.attacks import PGD
from firedoor.defences.broken.distilled import Distilled
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.ensemble_at import EnsembleAT
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.trades import TRADES
from firedoor.models.trained import Trained
from firedoor.protocols import Architecture
from firedoor.threat import Linf

RECIPE: dict[str, Any] = {"epochs": 10, "batch_size": 40, "optimiser": "adamw", "lr": 0.005}
STORE = DictStore()
LARGE = Linf(0.2)


def trained(loss: Any, architecture: Architecture = NET, key: int = 0, **more: Any) -> nn.Module:
    with seed.forked(key, "weights"):
        module = architecture.build(DIGITS.shape, 10)
    Fit(loss=loss, **{**RECIPE, **more}).train(module, DIGITS.split("target")[:600], STORE, key)
    return module


def right(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x).argmax(1) == held_out().y).float().mean())


def attacked(module: nn.Module, threat: Linf, objective: Any = "cross_entropy") -> Tensor:
    """Held-out digits after twenty steps of PGD on a network."""
    with seed.streams(0, held_out().ids):
        return PGD(threat, steps=20, objective=objective)(module, held_out().x, held_out().y)


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


# ------------------------------------------------------------------ TRADES


def test_beta_of_trades_buys_robust_accuracy_with_clean_accuracy() -> None:
    """On a network too small for both. Over three seeds: clean 93.8, 93.5, 92.5; robust 10.8, 27.7, 32.9."""
    clean, robust = [], []
    for beta in (0.2, 1.0, 4.0):
        modules = [trained(TRADES(LARGE, beta, steps=5), MLP(24, 1), key) for key in range(3)]
        clean.append(mean(map(accuracy, modules)))
        robust.append(mean(robust_accuracy(m, LARGE.eps) for m in modules))
    assert robust[0] + 0.1 < robust[1]
    assert robust[1] + 0.02 < robust[2]
    assert clean[0] + 0.005 > clean[1] > clean[2]
    assert clean[0] - clean[2] > 0.005


# ------------------------------------------------------------------ fast adversarial training


def test_the_guard_saves_fast_training_from_a_collapse() -> None:
    """At a learning rate that is too high the network resists for some epochs and then gives one answer for all, or nearly."""
    found = {}
    for guard in (False, True):
        modules = [trained(Fast(Linf(0.15), guard=guard), key=key, epochs=24, optimiser="sgd", lr=0.5) for key in range(3)]
        found[guard] = mean(map(robust_accuracy, modules)), mean(map(accuracy, modules))
    assert found[False][0] < 0.2  # 11 to 13 %
    assert found[True][0] > found[False][0] + 0.07  # 27 %
    assert found[True][1] > found[False][1] + 0.25  # 60 % of clean digits for 13 %


# ------------------------------------------------------------------ defensive distillation


def test_distillation_fools_cross_entropy_and_falls_to_the_margin_and_to_transfer() -> None:
    """Right answers: 91.3 clean, 70.5 under PGD by cross-entropy (18.0 undefended), 11.0 by the margin, 26.8 transferred."""
    temperature, threat = 40.0, Linf(0.15)

    class Architecture:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return Distilled(temperature).build(NET, shape, classes)

    teacher = trained(CrossEntropy(temperature), Architecture(), epochs=30)
    student = trained(Distillation(Live(teacher), temperature), Architecture(), epochs=30)
    undefended = attacked(plain(), threat)
    naive = right(student, attacked(student, threat))
    assert accuracy(student) > 0.85
    assert naive > right(plain(), undefended) + 0.35, "its gradient is not hidden"
    assert right(student, attacked(student, threat, "margin")) < naive - 0.4
    assert right(student, undefended) < naive - 0.3


# ------------------------------------------------------------------ training on transferred examples


def source(architecture: Architecture, key: int) -> Trained:
    return Trained(architecture, DIGITS, Fit(**{**RECIPE, "epochs": 8}), seed=key)


SEEN = (source(MLP(48, 1), 1), source(SmallCNN(8, 32), 2))
UNSEEN = source(MLP(96, 3), 3)


@lru_cache(maxsize=8)
def transferred(of: Trained) -> Tensor:
    return attacked(STORE.live(of), LARGE)  # type: ignore[arg-type]


def test_pubdef_resists_transfer_and_nothing_else() -> None:
    """Right answers, undefended and PubDef: 9 and 74 from the worst seen source, 16 and 61 from an unseen one, 1 and 1 in the white box."""
    module, control = trained(PubDef(SEEN, PGD(LARGE), DIGITS)), plain()
    for of in (*SEEN, UNSEEN):
        assert right(module, transferred(of)) > right(control, transferred(of)) + 0.25, of.architecture
    assert right(module, transferred(UNSEEN)) > 0.45
    assert min(right(module, transferred(of)) for of in SEEN) > right(module, transferred(UNSEEN))
    assert right(module, attacked(module, LARGE)) < 0.15, "it never saw its own gradient"
    assert accuracy(module) > accuracy(control) - 0.05


def test_ensemble_adversarial_training_resists_sources_that_it_never_saw() -> None:
    """Right answers, undefended and hardened: 16 and 56 from an unseen source, 95 and 93 clean."""
    module, control = trained(EnsembleAT(SEEN, PGD(LARGE), DIGITS)), plain()
    for of in (*SEEN, UNSEEN):
        assert right(module, transferred(of)) > right(control, transferred(of)) + 0.15, of.architecture
    assert right(module, transferred(UNSEEN)) > right(control, transferred(UNSEEN)) + 0.25
    assert accuracy(module) > accuracy(control) - 0.05
