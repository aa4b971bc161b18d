"""What each algorithm is known for, on digits and small networks: more than its formula, less than a study."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from committee_fakes import DIGITS, held_out
from defence_fakes import DictStore
from digit_fakes import NET, Live, accuracy, plain, robust_accuracy
from torch import Tensor, nn

from firedoor import seed
from firedoor.architectures import MLP, SmallCNN
from firedoor.attacks import FGSM, PGD
from firedoor.defences.broken.distilled import Distilled
from firedoor.defences.fit import Fit
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.ensemble_at import EnsembleAT
from firedoor.defences.losses.fast import Fast
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.trades import TRADES
from firedoor.models.trained import Trained
from firedoor.protocols import Architecture, Attack
from firedoor.threat import Linf

RECIPE: dict[str, Any] = {"epochs": 10, "batch_size": 40, "optimiser": "adamw", "lr": 0.005}
STORE = DictStore()
WIDE = MLP(256, 2)
ON_WIDE: dict[str, Any] = {"epochs": 15, "lr": 0.003}
LARGE = Linf(0.3)  # one step is far from the worst point: where one-step training and its neighbours part


def fit(module: nn.Module, loss: Any, key: int = 0, **more: Any) -> nn.Module:
    Fit(loss=loss, **{**RECIPE, **more}).train(module, DIGITS.split("target")[:600], STORE, key)
    return module


def trained(loss: Any, architecture: Architecture = NET, key: int = 0, **more: Any) -> nn.Module:
    with seed.forked(key, "weights"):
        module = architecture.build(DIGITS.shape, 10)
    return fit(module, loss, key, **more)


def right(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x).argmax(1) == held_out().y).float().mean())


def attacked(module: nn.Module, attack: Attack) -> Tensor:
    """Held-out digits after an attack on a network."""
    with seed.streams(0, held_out().ids):
        return attack(module, held_out().x, held_out().y)


def under(attack: Attack, module: nn.Module) -> float:
    return right(module, attacked(module, attack))


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


# ------------------------------------------------------------------ TRADES


def test_beta_of_trades_buys_robust_accuracy_with_clean_accuracy() -> None:
    """On a network too small for both. Clean 94.0, 93.7, 92.5; robust 2.3, 22.0, 32.9. Past a beta of 6 both fall.

    Threes of twelve seeds: 15 to 21 and then 9 to 15 points of robust accuracy for 1.1 to 1.5 of clean.
    """
    threat, clean, robust = Linf(0.2), [], []
    for beta in (0.0, 0.5, 4.0):
        modules = [trained(TRADES(threat, beta, steps=5), MLP(24, 1), key) for key in range(3)]
        clean.append(mean(map(accuracy, modules)))
        robust.append(mean(robust_accuracy(m, threat.eps) for m in modules))
    assert robust[0] + 0.1 < robust[1]
    assert robust[1] + 0.05 < robust[2]
    assert clean[0] + 0.005 > clean[1] > clean[2]
    assert clean[0] - clean[2] > 0.005


# ------------------------------------------------------------------ fast adversarial training


def test_one_step_training_unlearns_many_steps_until_the_guard_ends_it() -> None:
    """From a network trained by PGD (25.5 under one step, 17.2 under PGD): 54.3 and 6.2 by Fast, 44.7 and 27.3 by more PGD.

    The guard ends it at 13.2. Of six seeds it saves four; in two no epoch is better than a constant answer by enough.
    """
    many, found = PGD(LARGE, steps=20), []
    for loss in (Fast(LARGE, step=2.0, guard=False), Fast(LARGE, step=2.0), Madry(PGD(LARGE, steps=5))):
        module = trained(Madry(PGD(LARGE, steps=5)), WIDE, epochs=12, lr=0.003)
        before = under(many, module)
        fit(module, loss, epochs=40, lr=0.003, schedule="constant")
        found.append((under(FGSM(LARGE), module), under(many, module)))
    fast, guarded, madry = found
    assert fast[0] - fast[1] > 0.3  # three seeds: 48 to 52 points
    assert fast[1] < before - 0.05  # 11 to 17 points lost
    assert guarded[1] > fast[1] + 0.04  # 3 to 14 points saved, where it saves any
    assert madry[1] > before + 0.04  # 10 to 12 points won
    assert fast[0] > madry[0] + 0.04  # looks stronger by 9 to 10 points


def test_the_guard_saves_fast_training_that_comes_apart() -> None:
    """At a learning rate that is too high the network resists for some epochs and then gives one answer for all, or nearly.

    Of six seeds the guard stops all, and saves five; in one robust accuracy stays as it was and clean accuracy is saved.
    """
    found = {}
    for guard in (False, True):
        modules = [trained(Fast(Linf(0.15), guard=guard), key=key, epochs=24, optimiser="sgd", lr=0.5) for key in range(3)]
        found[guard] = mean(map(robust_accuracy, modules)), mean(map(accuracy, modules))
    assert found[False][0] < 0.2  # two threes of seeds: 12 and 13 %
    assert found[True][0] > found[False][0] + 0.05  # 14 and 16 points
    assert found[True][1] > found[False][1] + 0.15  # 33 and 47 points


# ------------------------------------------------------------------ defensive distillation


def test_distillation_fools_cross_entropy_and_falls_to_the_margin_and_to_transfer() -> None:
    """Right answers of four seeds: 91 to 92 clean, 68 to 70 under PGD by cross-entropy (16 to 19 undefended).

    By the margin 9 to 13, transferred 20 to 29.
    """
    temperature, threat = 40.0, Linf(0.15)
    teacher = trained(CrossEntropy(temperature), key=1, epochs=30)
    student = trained(Distillation(Live(teacher), temperature), epochs=30)
    by_cross_entropy = PGD(threat, steps=20)
    undefended = attacked(plain(), by_cross_entropy)
    naive = under(by_cross_entropy, student)
    assert accuracy(student) > 0.85
    assert naive > right(plain(), undefended) + 0.25, "its gradient is not hidden"
    assert under(replace(by_cross_entropy, objective="margin"), student) < naive - 0.28
    assert right(student, undefended) < naive - 0.2
    assert right(student, attacked(Distilled(temperature).relax(student), by_cross_entropy)) < naive - 0.28


# ------------------------------------------------------------------ training on transferred examples


def source(architecture: Architecture, key: int) -> Trained:
    return Trained(architecture, DIGITS, Fit(**{**RECIPE, "epochs": 8}), seed=key)


SEEN = (source(MLP(48, 1), 1), source(SmallCNN(8, 32), 2))
UNSEEN = source(MLP(96, 3), 3)


@lru_cache(maxsize=8)
def transferred(of: Trained) -> Tensor:
    return attacked(STORE.live(of), PGD(LARGE, steps=20))  # type: ignore[arg-type]


def test_pubdef_resists_transfer_keeps_clean_accuracy_and_falls_in_the_white_box() -> None:
    """Three seeds. Seen sources: 89 to 92 (0 to 6 undefended); unseen: 53 to 59 (35 to 40 by PGD training, 0 undefended).

    Clean: 94 to 96 (82 to 84 by PGD training, 95 to 96 undefended). White box: 0 (20 to 21 by PGD training).
    """
    white_box = PGD(LARGE, steps=20)
    undefended = trained(CrossEntropy(), WIDE, **ON_WIDE)
    adversarial = trained(Madry(PGD(LARGE, steps=5)), WIDE, **ON_WIDE)
    module = trained(PubDef(SEEN, PGD(LARGE), DIGITS), WIDE, **ON_WIDE)
    for of in SEEN:
        assert right(module, transferred(of)) > right(undefended, transferred(of)) + 0.4, of.architecture
    assert right(module, transferred(UNSEEN)) > right(undefended, transferred(UNSEEN)) + 0.25
    assert right(module, transferred(UNSEEN)) > right(adversarial, transferred(UNSEEN)) + 0.06
    assert accuracy(module) > accuracy(undefended) - 0.04
    assert accuracy(module) > accuracy(adversarial) + 0.05
    assert under(white_box, module) < 0.05, "it never saw its own gradient"
    assert under(white_box, adversarial) > 0.1


def test_static_sources_make_one_step_training_resist_sources_that_it_never_saw() -> None:
    """Right answers of five seeds without and with sources: 26 to 30 and 49 to 55 from an unseen one, 97 to 98 clean.

    Under one step on itself the network without sources looks stronger: 29 to 33 and 17 to 20.
    """
    one = FGSM(LARGE)
    single, ensemble = (trained(EnsembleAT(s, one, DIGITS), WIDE, **ON_WIDE) for s in ((), SEEN))
    assert right(ensemble, transferred(UNSEEN)) > right(single, transferred(UNSEEN)) + 0.1
    assert under(one, single) > under(one, ensemble) + 0.05
    assert right(ensemble, transferred(UNSEEN)) > under(one, ensemble) + 0.1
    assert accuracy(ensemble) > accuracy(single) - 0.03
