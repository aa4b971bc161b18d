"""Clauses about what an attack reaches: closed forms of linear models, the right label, the right sign, and life after a dead gradient."""

from __future__ import annotations

import itertools
import math

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from firedoor import losses
from firedoor.contracts import victims
from firedoor.contracts.linear_world import VECTOR, LinearWorld
from firedoor.contracts.subject import NORMS, Broken, Excused, Subject, at_least, at_most, need, rows, run
from firedoor.errors import SpecError
from firedoor.protocols import Access, Attack, Returned
from firedoor.threat import Threat

__all__ = [
    "aims_at_the_target",
    "attacks_y_also_where_it_is_wrong",
    "reaches_the_known_optimum",
    "success_grows_with_the_budget",
    "survives_a_dead_gradient",
]

FAR = 4.0  # times the distance: here an attack that stops at its first success gives itself away
ONWARDS, SLOWLY_ONWARDS = 2.0, 1.3  # times the margin: what it must fall by there, with gradients and without
FACTOR = 3.0  # times the spread of sign noise: what attacks must reach that transform, smooth, search or generalise
MINIMAL: dict[str, object] = {
    "steps": 200,
    "queries": 3000,
    "probes": 50,
    "searches": 9,
    "learning_rate": 0.02,
    "c": 0.1,
    "overshoot": 0.001,
}


def _worlds(s: Subject) -> list[tuple[str, LinearWorld]]:
    """Images in every norm that the attack takes, and vectors in the first one, as far as it takes either."""
    images = s.takes(victims.SHAPE)
    need(images or s.takes(VECTOR), f"it takes neither images nor vectors: {s.refusal(victims.SHAPE)}")
    worlds = [(norm, LinearWorld(s, norm)) for norm in s.norms if images]
    return [*worlds, (f"{s.norms[0]}, vectors", LinearWorld(s, s.norms[0], VECTOR))] if s.takes(VECTOR) else worlds


def reaches_the_known_optimum(s: Subject) -> str:
    """23: not a no-op. The closed form of a linear model, or a stated multiple of noise; and never the clean example on failure.

    At four times the distance it does what its semantics say: it goes on to its budget, or stays at the boundary.
    """
    return "; ".join((_minimum if s.minimum else _fixed)(s, where, world) for where, world in _worlds(s))


def _large(s: Subject) -> dict[str, object]:
    """Budgets to reach an optimum with: long walks where they are exact, many probes where there is no gradient."""
    probing = s.sample.needs is not Access.GRADIENTS
    return {"steps": 20 if s.exact else 8, "queries": 400, "n": 30 if probing else 2, "probes": 30, "epochs": 3}


def _attacked(s: Subject, world: LinearWorld, eps: float, targeted: bool | None = None) -> tuple[Attack, Tensor]:
    """The attack within eps, with a large budget, and what it makes of the world."""
    threat = s.ball(world.norm, eps) if targeted is None else NORMS[world.norm](eps, targeted)
    attack = s.make(threat, MINIMAL if s.minimum else _large(s), tuple(world.x.shape[1:]), s.few)
    return attack, run(attack, s.source(world.network), world.x, 1 - world.y if targeted else world.aim)


def _fixed(s: Subject, where: str, world: LinearWorld) -> str:
    eps = world.below(0.5)
    attack, x_adv = _attacked(s, world, eps)
    half = f"{where}, eps at half the distance"
    at_most(int((rows(x_adv - world.x) == 0).sum()), 0, f"{half}: clean examples returned, of {len(world.x)}")
    used = float((attack.threat.size(x_adv - world.x) / eps).min())
    fall = world.fall(x_adv, eps)
    at_most(float(fall.max()), 1 + 1e-6, f"{half}: largest fall of the margin over that of the optimum")
    if s.unaimed:
        at_least(used, 0.5 if s.family == "null" else 0.1, f"{half}: share of the budget used")
        return f"{where}: {used:.2f} of the budget used; no closed form binds the family {s.family!r}"
    if s.exact and s.stays:
        bound = 0.99 if world.norm == "Linf" or not attack.semantics.stochastic else 0.9
        text = at_least(float(fall.min()), bound, f"{half}: least fall of the margin over that of the optimum")
    else:
        bound = FACTOR * world.noise(eps)
        text = at_least(float(fall.mean()), bound, f"{half}: mean fall of the margin over the optimum's ({FACTOR:g} x sign noise)")
    if s.stays and s.sample.needs is Access.GRADIENTS:  # estimated steps cancel in part
        at_least(used, 0.9 if s.exact else 0.5, f"{half}: share of the budget used")
    if s.exact:
        _succeeds(s, where, world, 1.5)
    return f"{text}, and {_as_declared(s, where, world)}"


def _as_declared(s: Subject, where: str, world: LinearWorld) -> str:
    """At FAR times the distance: `last` and `best loss` that never stop use the budget, `first success` and `closest` do not."""
    eps = world.beyond(FAR)
    attack, x_adv = _attacked(s, world, eps)
    returned, stops = attack.semantics.returned, attack.semantics.stops
    share = float((attack.threat.size(x_adv - world.x) / eps).mean())
    far, used = f"{where}, eps at {FAR:g} times the distance", "mean share of the budget used"
    if s.stays:
        declared, seeing = f"as it is declared to go on ({returned.name}, {stops.name})", s.sample.needs is Access.GRADIENTS
        fall = float((world.fall(x_adv, eps) * world.most(eps)).mean()) / world.margin
        bound = ONWARDS if seeing else SLOWLY_ONWARDS
        at_least(fall, bound, f"{far}: mean fall of the margin over what leads to the boundary, {declared}")
        if seeing:
            at_least(share, 0.5, f"{far}: {used}, {declared}")
        return f"goes {fall:.2f} times as far as the boundary where it may go {FAR:g} times (at least {bound:g})"
    if returned in (Returned.FIRST_SUCCESS, Returned.CLOSEST):
        at_most(share, 0.5, f"{far}: {used}, as it is declared to stay at the boundary ({returned.name})")
        return f"uses {share:.2f} of {FAR:g} times the distance (at most 0.5)"
    return f"promises nothing beyond the boundary ({returned.name}, {stops.name})"


def _minimum(s: Subject, where: str, world: LinearWorld) -> str:
    eps = world.below(0.5)
    _, x_adv = _attacked(s, world, eps)
    still = int((rows(x_adv - world.x) == 0).sum())
    at_most(still, 0, f"{where}: clean examples returned where the budget does not suffice, of {len(world.x)}")
    fall = world.fall(x_adv, eps)
    least, bound = (float(fall.min()), 0.9) if s.exact else (float(fall.mean()), world.noise(eps))
    at_least(least, bound, f"{where}, eps at half the distance: fall of the margin over the optimum's")
    sizes = _succeeds(s, where, world, FAR) / world.distance
    at_least(float(sizes.min()), 1 - 1e-6, f"{where}: smallest distance over the true one")
    most = 1.01 if s.exact else 1.6
    return at_most(float(sizes.max()), most, f"{where}: largest distance over the true one")


def _succeeds(s: Subject, where: str, world: LinearWorld, times: float) -> Tensor:
    """Every example fools the source at `times` the distance; the sizes it took."""
    attack, x_adv = _attacked(s, world, world.beyond(times))
    with torch.no_grad():
        fooled = int((losses.margin(world.network(x_adv), world.y) >= -1e-9).sum())
    at_least(
        fooled, len(world.x), f"{where}, eps at {times:g} times the distance: examples that fool the source, of {len(world.x)}"
    )
    return attack.threat.size(x_adv - world.x)


def _four_classes() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of four classes that is sure of itself, inputs, and its labels."""
    w = victims.normals(4, math.prod(victims.SHAPE), key=6)
    x = victims.images(16, low=0.3, high=0.7, key=2)
    network = victims.DeepLinear(3 * w, -1.5 * w.sum(1), victims.SHAPE[0])
    with torch.no_grad():
        return network, x, network(x).argmax(1)


def attacks_y_also_where_it_is_wrong(s: Subject) -> str:
    """16: examples that the source gets wrong are attacked as any other, against y and not against the prediction."""
    if s.blind:
        raise Excused("it asks the model nothing, so it cannot tell right from wrong")
    if s.aimed:
        raise Excused("it takes targeted threats only, and is given no y")
    if s.minimum:
        raise Excused("it seeks the least change, and none is needed where the source is wrong already")
    network, x, predicted = _four_classes()
    attack, wrong = s.make(s.threat(0.05)), (predicted + 2) % 4
    source = s.source(network)
    right_adv, wrong_adv = run(attack, source, x, predicted), run(attack, source, x, wrong)
    right_still, wrong_still = (int((rows(a - x) == 0).sum()) for a in (right_adv, wrong_adv))
    if right_still == len(x):
        raise Excused("it moves no example, right or wrong: clause 23 speaks of that")
    at_most(wrong_still, right_still, f"examples of {len(x)} left alone because the source gets them wrong")
    if s.unaimed:
        return f"all of {len(x)} wrong examples move; one answer for all looks at no label"
    alike = int((rows(right_adv - wrong_adv) == 0).sum())
    return at_most(alike, len(x) // 2, f"examples of {len(x)} attacked alike whether y or the prediction is the label")


def success_grows_with_the_budget(s: Subject) -> str:
    """17: on the source, more eps or more steps never lose a success: exactly on a linear model, by McNemar's test elsewhere."""
    if s.aimed:
        raise Excused("it takes targeted threats only: clause 15 measures those")
    network, x, predicted = _four_classes()
    y = torch.where(torch.arange(len(x)) % 2 == 0, predicted, (predicted + 2) % 4)
    ladder = [_fooled(s, network, x, y, eps, {}) for eps in (0.0, 0.01, 0.03, 0.1, 0.25)]
    steps = [_fooled(s, network, x, y, 0.03, {"steps": k}) for k in (1, 2, 4, 8)] if s.exact else []
    pairs = [*itertools.pairwise(ladder), *itertools.pairwise(steps)]
    lost = sum(int((less & ~more).sum()) for less, more in pairs)
    gained = sum(int((more & ~less).sum()) for less, more in pairs)
    if s.exact:
        at_most(lost, 0, f"successes on a linear model that more budget loses ({gained} gained)")
    else:
        _mcnemar(lost, gained, "a linear model")
    cnn = victims.CNN()
    images = victims.images(24, key=4)
    with torch.no_grad():
        labels = cnn(images).argmax(1)
    few, many = (_fooled(s, cnn, images, labels, eps, {}) for eps in (0.02, 0.2))
    text = _mcnemar(int((few & ~many).sum()), int((many & ~few).sum()), "a CNN, eps 0.02 to 0.2")
    return f"a linear model: {lost} successes lost, {gained} gained; {text}"


def _mcnemar(lost: int, gained: int, where: str) -> str:
    p = float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue) if lost + gained else 1.0
    need(p >= 0.01, f"{where}: more budget loses {lost} successes and gains {gained}, p = {p:.2g}; at least 0.01 needed")
    return f"{where}: {lost} lost, {gained} gained, p = {p:.2g} (at least 0.01)"


def _fooled(s: Subject, network: nn.Module, x: Tensor, y: Tensor, eps: float, changes: dict[str, object]) -> Tensor:
    norm = s.threat(0.1).norm
    scale = {"Linf": 1.0, "L2": 8.0, "L1": 60.0, "L0": 60.0}[norm]
    attack = s.make(s.ball(norm, round(scale * eps) if norm == "L0" else scale * eps), changes)
    with torch.no_grad():
        logits: Tensor = network(run(attack, s.source(network), x, y))
    return (logits.argmax(1) != y) & torch.isfinite(logits).all(1)  # what has no label fools nobody


def aims_at_the_target(s: Subject) -> str:
    """15: with a targeted threat the loss towards y_target falls, and beyond the distance the prediction is y_target."""
    try:
        attack = s.make(NORMS[s.norms[0]](0.05, True))
    except SpecError as error:
        need(not s.sample.semantics.targeted, f"a targeted threat is refused ({str(error)[:80]}), but semantics.targeted is True")
        raise Excused(f"it takes no targeted threat, says so, and refuses: {str(error)[:80]}") from None
    need(attack.semantics.targeted, "a targeted threat is taken, but semantics.targeted is False")
    if s.unaimed and not (s.family == "generative" and s.sample.semantics.targeted):
        raise Excused(f"the family {s.family!r} aims at no label of one example")
    texts = []
    for where, world in _worlds(s):
        target, eps = 1 - world.y, world.beyond(1.5)
        _, x_adv = _attacked(s, world, eps, targeted=True)
        fall = world.fall(x_adv, eps)
        with torch.no_grad():
            lower = losses.cross_entropy(world.network(x_adv), target) < losses.cross_entropy(world.network(world.x), target)
            hit = int((losses.margin(world.network(x_adv), target) <= 1e-9).sum())
        if s.exact:
            at_least(int(lower.sum()), len(target), f"{where}: examples whose loss towards y_target falls, of {len(target)}")
            texts.append(
                at_least(hit, len(target), f"{where}: predictions that are y_target at 1.5 times the distance, of {len(target)}")
            )
        else:
            bound = 0.5 * FACTOR * world.noise(eps)
            texts.append(at_least(float(fall.mean()), bound, f"{where}: mean move towards y_target over the optimum's"))
    network, x, predicted = _four_classes()
    target = (predicted + 1) % 4
    x_adv = run(s.make(NORMS[s.norms[0]](0.05, True), _large(s)), s.source(network), x, target)
    with torch.no_grad():
        gain = losses.cross_entropy(network(x), target) - losses.cross_entropy(network(x_adv), target)
    texts.append(at_least(float(gain.mean()), 1e-6, "mean fall of the loss towards y_target, four classes"))
    return "; ".join(texts)


def survives_a_dead_gradient(s: Subject) -> str:
    """18: zero, NaN, infinite or missing gradients give a finite output in the ball; when they end, the example moves again."""
    if s.sample.needs is not Access.GRADIENTS or s.blind:
        raise Excused("it asks for no gradient")
    texts = []
    world = _worlds(s)[0][1]
    shape = tuple(world.x.shape[1:])
    for kind in ("zero", "nan", "inf", "none"):
        threat = s.ball(world.norm, world.below(0.9))
        never = run(s.make(threat, {}, shape, s.few), s.source(victims.Dead(world.network, kind, math.inf)), world.x, world.aim)
        lost = int((~torch.isfinite(never)).flatten(1).any(1).sum())
        at_most(lost, 0, f"{kind} gradients: examples that are not finite, of {len(never)}")
        threat.check(never, world.x)
        texts.append(_back(s, threat, kind, world))
    return f"finite with zero, NaN, infinite and missing gradients; afterwards {', '.join(texts)}"


def _back(s: Subject, threat: Threat, kind: str, world: LinearWorld) -> str:
    changes: dict[str, object] = {**(MINIMAL if s.minimum else {}), "steps": 20}
    attack: Attack = s.make(threat, changes, tuple(world.x.shape[1:]), s.few)
    if attack.gradients <= 2 or s.unaimed:
        return f"{kind}: {attack.gradients} gradient(s), so there is no later one"
    later = run(attack, s.source(victims.Dead(world.network, kind, 2)), world.x, world.aim)
    fall = world.fall(later, threat.eps)
    if not bool(torch.isfinite(later).all()):
        raise Broken(f"{kind} gradients: NaN or Inf once the gradient is back; finite needed")
    bound = 0.2 if s.exact and s.stays else 0.05
    return at_least(float(fall.min() if s.exact else fall.mean()), bound, f"{kind}: fall of the margin once the gradient is back")
