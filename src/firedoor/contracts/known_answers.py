"""Models where the best perturbation has a closed form, and every attack of the catalogue held against it.

A case is an attack, a kind of model and a norm; it holds if each example reaches the optimum within 1 % and none goes beyond it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from firedoor import catalogue, losses, seed
from firedoor.attacks.iterated import Iterated
from firedoor.attacks.parts.momentum import Momentum
from firedoor.contracts import victims
from firedoor.contracts.victims import normals
from firedoor.models.ensemble import Members
from firedoor.protocols import Attack, Budget
from firedoor.threat import L0, L1, L2, Linf, Threat

__all__ = ["Case", "World", "built", "cases", "count_and_check", "judged", "world_of"]

LOWEST, HIGHEST = 1 / 1.01, 1 + 1e-6  # share of the optimum
BALLS: dict[str, Any] = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
EPS: dict[str, float] = {"Linf": 0.05, "L2": 0.2, "L1": 0.15, "L0": 3}
D, N = 18, 8  # pixels, examples
KINDS = ("attacks", "parts", "objectives")


@dataclass(frozen=True, eq=False)
class World:
    """One kind of model under one norm. judge: x to (n,), what an attack raises, at least 0 beyond the boundary.

    optimum: (n,) the most that any point of ball and box adds to it. least: (n,) the distance to the boundary. None: no formula. Without
    an optimum any attack is asked for its distance, as one of minimum norm is.
    """

    source: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    judge: Callable[[Tensor], Tensor]
    optimum: Tensor | None
    least: Tensor | None = None

    def share(self, x_adv: Tensor, minimum: bool) -> Tensor:
        """(n,) share of the optimum that x_adv reaches; for minimum-norm attacks the least distance over theirs, 0 where they failed."""
        after = self.judge(x_adv)
        if self.optimum is not None and not minimum:
            return (after - self.judge(self.x)) / self.optimum
        assert self.least is not None, "this world has no least distance"
        return torch.where(after >= 0, self.least / self.threat.size(x_adv - self.x).clamp_min(1e-300), 0.0)


@dataclass(frozen=True)
class Case:
    """One row of the table: a catalogue name, its fields (step_size in units of eps), the kind of model and the norm."""

    attack: str
    world: str
    norm: str
    fields: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.attack} on {self.world}, {self.norm}"


def count_and_check(progress: Callable[[str, int, int], None] | None = None) -> tuple[int, tuple[str, ...]]:
    """How many distinct cases hold, and a message with value and bound for each that does not. `progress`: (what, done, total)."""
    table, failures = list(cases()), []
    for i, case in enumerate(table):
        if progress is not None:
            progress("known answers", i, len(table))
        message = judged(case, built(case))
        if message:
            failures.append(message)
    return len(table) - len(failures), tuple(failures)


def judged(case: Case, attack: Attack, minimum: bool | None = None) -> str | None:
    """None where `attack` meets the optimum of the case, else what it reached. minimum: as its semantics say."""
    world = world_of(case.world, case.norm)
    if minimum is None:
        minimum = attack.semantics.budget is Budget.MINIMUM
    x_adv = attack(world.source, world.x, world.y)
    world.threat.check(x_adv, world.x)
    share = world.share(x_adv, minimum)
    low, high = float(share.min()), float(share.max())
    if low >= LOWEST and high <= HIGHEST:
        return None
    return f"{case}: reached {low:.6f} to {high:.8f} of the optimum, bounds {LOWEST:.6f} to {HIGHEST:.6f}"


def built(case: Case) -> Attack:
    """The attack of a case with its fields; parts and objectives stand in the loop."""
    threat, fields = world_of(case.world, case.norm).threat, dict(case.fields)
    if "step_size" in fields:
        fields["step_size"] *= threat.eps
    kind = next(k for k in KINDS if case.attack in _names(k))
    entry = catalogue.find(kind, case.attack)
    if kind == "parts":
        return Iterated(threat, parts=(entry(**fields), Momentum()), objective="margin")
    if kind == "objectives":
        return Iterated(threat, parts=(Momentum(),), objective=entry(**fields))
    if case.attack == "Admix":
        fields["data"] = victims.Shapes(tuple(world_of(case.world, case.norm).x.shape[1:]))
    objective = fields.pop("objective", None)  # aliases have no such field, the loop they build has
    attack: Attack = entry(threat, **fields)
    return attack if objective is None else replace(attack, objective=objective)  # type: ignore[type-var]


# ---------------------------------------------------------------- the table

CHAIN = ("FGSM", "I_FGSM", "MI_FGSM", "NI_FGSM")
NEIGHBOURS = ("VMI_FGSM", "VNI_FGSM", "PGN", "MEF")  # exact where the slope is the same at other places
DARKER = ("SI_MI_FGSM", "SI_NI_FGSM")
TRANSFORMING = ("DI_FGSM", "TI_FGSM", "Admix", "SSA", "BSR", "DeCoWA", "L2T", "OPS", "NI_SI_TI_DIM", "MI_DI_TI_SI", "VMI_DI_TI")
INSIDE = ("FIA", "NAA", "BFA", "ILPD")
MEMBERS = ("SVRE", "CWA", "AdaEA")
LONG = {"steps": 50, "step_size": 1.0}  # in the box a long step makes each projection the maximum of a linear function
RANDOM = {"steps": 20, "step_size": 0.25}  # of a random start 1.25^-20 is left
AGAIN = {"restarts": 10, "objective": "margin"}
MARGIN = {"objective": "margin"}
BOTH = "Linf L2"
SLOPES = dict.fromkeys(("linear", "linear, transfer", "logits x 1e-8", "mean of linear", "tanh of linear"), BOTH)
STEEP = {"logits x 1e4": BOTH}  # where cross-entropy saturates, and the margin does not
EDGE = {"4 classes, just within reach": BOTH}
CURVED = {"linear, 4 classes": BOTH, "sphere": BOTH}
NEAREST = {**SLOPES, **STEEP, **CURVED, **EDGE, "linear in the box": BOTH, "ReLU net": BOTH}
del NEAREST["linear, transfer"]
BENT = ("sphere", "tanh of linear")  # a linearised step ends beyond the boundary, and DeepFool takes none of it back

ROWS: tuple[tuple[tuple[str, ...], dict[str, Any], dict[str, str]], ...] = (
    (CHAIN, {}, {**SLOPES, **EDGE, "linear": "Linf L2 L1", "linear in the box": "Linf L1 L0", "linear, transfer": "Linf L2 L1"}),
    (CHAIN, {}, dict.fromkeys(("linear, 4 classes", "sphere"), "Linf L2 L1")),
    (CHAIN[:3], {}, {"linear, targeted": "Linf L2 L1"}),  # NI looks ahead beyond the ball, where another class leads
    (CHAIN, {}, {"one weight per channel": BOTH}),
    (CHAIN, MARGIN, STEEP),
    (CHAIN[1:], LONG, {"linear in the box": "L2"}),
    (CHAIN[:3], {}, {"linear": "L0"}),
    (("PGD",), RANDOM, {**SLOPES, **CURVED, "linear, transfer": "Linf", "linear, targeted": BOTH, "linear in the box": "Linf"}),
    (("PGD",), {**RANDOM, **MARGIN}, STEEP),
    (("PGD",), LONG, {"linear in the box": "L2", "linear, transfer": "L2"}),
    (("PGD",), {}, {"linear in the box": "L1 L0", "linear": "L1 L0", "linear, transfer": "L1"}),
    (("PGD",), {**AGAIN, "steps": 50, "step_size": 0.1, "keep": "best"}, {"ReLU net": BOTH}),
    (NEIGHBOURS, {"n": 3}, {**SLOPES, "linear in the box": "Linf L1", "one weight per channel": "Linf"}),
    (NEIGHBOURS, {"n": 3, **MARGIN}, STEEP),
    (NEIGHBOURS, {"n": 2, **LONG}, {"linear in the box": "L2"}),
    (DARKER, {"m": 3}, {**SLOPES, "linear in the box": "Linf L1", "one weight per channel": "Linf"}),
    (DARKER, {"m": 3, **MARGIN}, STEEP),
    (DARKER, {"m": 2, **LONG}, {"linear in the box": "L2"}),
    (TRANSFORMING, {}, {"one weight per channel": "Linf"}),
    (("LogitTargeted",), {"steps": 20}, {"one weight per channel, targeted": "Linf"}),
    (INSIDE, {}, {"one weight per channel, open inside": BOTH}),
    (MEMBERS, {}, {**SLOPES, "members of one sign": "Linf", "linear in the box": "Linf L1"}),
    (("MemberLoss",), {}, {"members of one sign": "Linf", "linear": BOTH}),
    (("EOT",), {"n": 50}, {"random linear": BOTH}),
    (("APGD",), {"steps": 60}, {**SLOPES, **CURVED, **EDGE, "linear, targeted": BOTH, "linear in the box": BOTH}),
    (("APGD",), {"steps": 60, **MARGIN}, STEEP),
    (("APGD", "APGD_T"), {}, dict.fromkeys(("linear", "linear in the box", "linear, 4 classes"), "L1")),
    (("APGD_CE",), {}, {"linear in the box": "L1"}),
    (("APGD",), {**AGAIN, "steps": 60}, {"ReLU net": "Linf"}),
    (("APGD_CE",), {}, {"linear": BOTH, **EDGE}),
    (("APGD_DLR",), {}, EDGE),
    (("APGD_T",), {"steps": 60}, {**SLOPES, **STEEP, **EDGE, "sphere": BOTH}),
    (("FAB", "FAB_T"), {}, {**NEAREST, "linear": "Linf L2 L1", "linear in the box": "Linf L2 L1"}),
    (("DeepFool",), {"overshoot": 0.001}, {k: v for k, v in NEAREST.items() if k not in BENT}),
    (("FMN",), {"steps": 300}, {**NEAREST, "linear": "Linf L2 L1"}),
    (("DDN",), {"steps": 300}, {k: "L2" for k in NEAREST if k not in ("logits x 1e4", "ReLU net")}),  # cross-entropy; one descent
    (("CW",), {"steps": 200}, {"linear": "L2", "sphere": "L2"}),
    (("HopSkipJump",), {"queries": 10_000}, {"linear": BOTH, "sphere": "L2"}),
    (
        ("Square",),
        {"queries": 2000},
        {"linear": "Linf", "linear in the box": "Linf", "tanh of linear": "Linf", "logits x 1e-8": "Linf"},
    ),
    (("NES", "SPSA"), {"n": 3000, "steps": 2}, {"linear": BOTH, "tanh of linear": BOTH}),
)


def cases() -> Iterator[Case]:
    """Every case whose attack is in the catalogue; one that is missing there is missing here."""
    known = {name for kind in KINDS for name in _names(kind)}
    for names, fields, worlds in ROWS:
        for name, (world, norms) in itertools.product(names, worlds.items()):
            if name in known:
                yield from (Case(name, world, norm, tuple(fields.items())) for norm in norms.split())


def _names(kind: str) -> set[str]:
    return {e.name for e in catalogue.entries(kind)}


# ---------------------------------------------------------------- linear models


class _Affine(nn.Module):
    """scale * squash(W x + b) in float64; rows of W are classes."""

    def __init__(self, w: Tensor, b: Tensor, scale: float = 1.0, squash: bool = False) -> None:
        super().__init__()
        self.w, self.b, self.scale, self.squash = nn.Parameter(w), nn.Parameter(b), scale, squash

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1).to(self.w.dtype) @ self.w.T + self.b
        return self.scale * (logits.tanh() if self.squash else logits)


class _Noisy(_Affine):
    """Each query sees a slope with noise of its own size: the mean over many is the truth."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x * seed.normal(x))


def _pair(w: Tensor, b: Tensor, scale: float = 1.0, squash: bool = False) -> _Affine:
    """Two classes; the logit of 1 minus that of 0 is w.x + b."""
    return _Affine(torch.stack((-w, w)) / 2, torch.stack((-b, b)) / 2, scale, squash)


def _uniforms(key: int, rows: int, low: float, high: float, d: int = D) -> Tensor:
    return victims.images(rows, (d,), low, high, key=key)


def _dual(norm: str, v: Tensor) -> Tensor:
    """(..., d) to (...): how much v.x changes at most in the unit ball."""
    return {"Linf": v.abs().sum(-1), "L2": v.square().sum(-1).sqrt(), "L1": v.abs().amax(-1)}[norm]


def _direction(norm: str, v: Tensor) -> Tensor:
    """(..., d) to the point of the unit ball where it changes so much."""
    if norm == "Linf":
        return v.sign()
    return v / _dual("L2", v)[..., None] if norm == "L2" else v.sign() * (v.abs() == v.abs().amax(-1, keepdim=True))


def _at_distance(w: Tensor, b: Tensor, norm: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """x moved along w so that it lies .2 to .9 eps from the boundary w.x + b = 0, and these distances."""
    least = EPS[norm] * torch.linspace(0.2, 0.9, len(x), dtype=x.dtype)
    margin = x @ w + b
    x = x + ((margin.sign() * least * _dual(norm, w) - margin) / w.square().sum())[:, None] * w
    assert (x - 0.5).abs().amax() < 0.3, "the box must not bind"
    return x, least


def _linear(norm: str, scale: float = 1.0, squash: bool = False) -> World:
    w = normals(1, D, key=1)[0]
    if norm == "L0":
        return _few_heavy_pixels(w)
    b, threat = -w.sum() / 2, BALLS[norm](EPS[norm], False)
    x, least = _at_distance(w, b, norm, _uniforms(2, N, 0.35, 0.65))
    source = _pair(w, b, scale, squash)
    y = source(x).argmax(1)
    fall, margin = threat.eps * _dual(norm, w), least * _dual(norm, w)
    optimum = scale * (2 * ((fall - margin) / 2).tanh() + 2 * (margin / 2).tanh() if squash else fall.expand(N))
    return World(source, x, y, threat, _margin(source, y), optimum, least)


def _few_heavy_pixels(w: Tensor) -> World:
    """For L0: three pixels that outweigh the others wherever they stand, each with its whole room."""
    w = torch.where(torch.arange(D) < 3, 10 * w.sign(), w.sign())
    source, x = _pair(w, -w.sum() / 2), _uniforms(2, N, 0.35, 0.65)
    y = source(x).argmax(1)
    up = torch.where(y[:, None] == 1, -w, w) > 0
    optimum = (w.abs() * torch.where(up, 1 - x, x))[:, :3].sum(1)
    return World(source, x, y, BALLS["L0"](3), _margin(source, y), optimum)


def _in_the_box(norm: str) -> World:
    """Pixels anywhere in [0,1]: the fall is sum |w_i| min(t |w_i|, room_i) with the t that uses eps (L2), or min(eps, room_i) (Linf).

    L1 fills the room of the largest |w_i| in turn, L0 takes the eps largest |w_i| room_i.
    """
    w, eps = normals(1, D, key=1)[0], {"Linf": 0.4, "L2": 0.8, "L1": 3.3, "L0": 5}[norm]
    source, x = _pair(w, -w.sum() / 2), _uniforms(3, 60, 0, 1)
    y = source(x).argmax(1)
    room = torch.where((w > 0) == (y[:, None] == 0), 1 - x, x)

    def fall(row: int, size: float) -> float:
        if norm == "Linf":
            return float((w.abs() * room[row].clamp_max(size)).sum())
        if norm == "L0":
            return float((w.abs() * room[row]).sort(descending=True).values[: int(size)].sum())
        if norm == "L1":
            gained, left = 0.0, size
            for i in w.abs().argsort(descending=True):
                gained += float(w.abs()[i]) * min(float(room[row, i]), left)
                left -= min(float(room[row, i]), left)
            return gained

        def move(t: float) -> Tensor:
            return torch.minimum(t * w.abs(), room[row])

        t = float(brentq(lambda t: float(_dual("L2", move(t))) - size, 0, 1e9, xtol=1e-15, rtol=1e-14))
        return float((w.abs() * move(t)).sum())

    judge = _margin(source, y)
    margins, most = -judge(x), torch.tensor([fall(i, eps) for i in range(len(x))], dtype=x.dtype)
    kept = [i for i in range(len(x)) if 0.2 * most[i] < margins[i] < 0.95 * most[i]][:N]
    x, y, threat, optimum = x[kept], y[kept], BALLS[norm](eps, False), most[kept]
    if norm == "L0":
        return World(source, x, y, threat, _margin(source, y), optimum)
    least = [float(brentq(lambda e, i=i: fall(i, e) - float(margins[i]), 1e-9, eps, xtol=1e-15)) for i in kept]
    return World(source, x, y, threat, _margin(source, y), optimum, torch.tensor(least, dtype=x.dtype))


def _several_classes(norm: str, targeted: bool = False, edge: bool = False) -> World:
    """Four classes, and logits so steep that the runner-up alone counts. The answer is over all classes: max or min over k.

    edge: moved so that the nearest boundary is eps/1.005 away, where every attack must succeed and none can be far.
    """
    w, threat = normals(4, D, key=4), BALLS[norm](EPS[norm], targeted)
    source, x = _Affine(w, -w.sum(1) / 2, scale=200.0), _uniforms(5, 6000, 0.25, 0.75)
    logits = source(x).detach() / 200
    first, second = logits.topk(2).indices.unbind(1)
    if edge:
        way, b = w[first] - w[second], source.b.detach()
        wanted = threat.eps / 1.005 * _dual(norm, way)
        x = x + ((wanted - (x * way).sum(1) - b[first] + b[second]) / way.square().sum(1))[:, None] * way
        logits = source(x).detach() / 200
    gap = logits.gather(1, first[:, None]) - logits  # (n, 4)
    reach = _dual(norm, w[first][:, None] - w[None]).scatter(1, first[:, None], 1.0)
    distance = (gap / reach).scatter(1, first[:, None], torch.inf)
    least = distance.amin(1)
    ahead = logits.gather(1, second[:, None]) - logits - threat.eps * _dual(norm, w[second][:, None] - w[None])
    clear = ahead.scatter(1, torch.stack((first, second), 1), torch.inf).amin(1) > 0.2  # of the two others, wherever in the ball
    lead = (gap - threat.eps * reach).scatter(1, torch.stack((first, second), 1), torch.inf).amin(1) > 0.2
    room = (x.amin(1) > 0.2) & (x.amax(1) < 0.8)
    kept = (clear & lead & room & (0.2 * threat.eps < least) & (least < (1.0 if edge else 0.9) * threat.eps)).nonzero()[:N, 0]
    assert len(kept) == N, "too few examples are clear of the other classes"
    x, y = x[kept], (second if targeted else first)[kept]
    if targeted:  # the second class against the first, which stays ahead of the others
        rise = threat.eps * reach[kept].gather(1, y[:, None])[:, 0]
        least = distance[kept].gather(1, y[:, None])[:, 0]
    else:
        rise = (threat.eps * reach - gap)[kept].scatter(1, y[:, None], -torch.inf).amax(1) - losses.margin(logits[kept], y)
        least = least[kept]
    judge = _margin(source, y, -1.0 if targeted else 1.0)
    return World(source, x, y, threat, judge, None if edge else 200 * rise, least)


def _transfer(norm: str) -> World:
    w, v = normals(1, D, key=1)[0], normals(1, D, key=1)[0] + normals(1, D, key=6)[0]
    source, target = _pair(w, -w.sum() / 2), _pair(v, -v.sum() / 2)
    x = _uniforms(2, N, 0.35, 0.65)
    y = source(x).argmax(1)
    fall = EPS[norm] * (v @ _direction(norm, w))
    assert float(fall) > 0, "the target must lose"
    return World(source, x, y, BALLS[norm](EPS[norm], False), _margin(target, y), fall.expand(N))


def _mean_of_linear(norm: str, one_sign: bool = False) -> World:
    """Three members whose mean logit is the linear model of their mean weights."""
    w = normals(1, D, key=1)[0] * _uniforms(7, 3, 0.5, 1.5) if one_sign else normals(1, D, key=1)[0] + 0.5 * normals(3, D, key=7)
    source = Members([_pair(row, -row.sum() / 2) for row in w], "logits")
    mean = w.mean(0)
    x, least = _at_distance(mean, -mean.sum() / 2, norm, _uniforms(2, N, 0.35, 0.65))
    y = source(x).argmax(1)
    threat = BALLS[norm](EPS[norm], False)
    return World(source, x, y, threat, _margin(source, y), (threat.eps * _dual(norm, mean)).expand(N), least)


def _random_linear(norm: str) -> World:
    plain = _linear(norm)
    w = normals(1, D, key=1)[0]
    noisy = _Noisy(torch.stack((-w, w)) / 2, torch.stack((w.sum(), -w.sum())) / 4)
    return World(noisy, plain.x, plain.y, plain.threat, plain.judge, plain.optimum)


def _one_weight_per_channel(norm: str, targeted: bool = False, deep: bool = False) -> World:
    """Images whose pixels weigh the same within a channel: moving or blurring a gradient leaves its signs as they are.

    deep: the same function through two linear layers, for attacks that look inside.
    """
    w = torch.tensor([1.0, -0.6], dtype=torch.float64)[:, None].expand(2, 64).flatten() / 8
    x, least = _at_distance(w, -w.sum() / 2, norm, _uniforms(8, N, 0.35, 0.65, 128))
    source = victims.two_class(w.view(2, 8, 8), -float(w.sum()) / 2, deep)
    x = x.view(N, 2, 8, 8)
    y = source(x).argmax(1)
    y, threat = (1 - y if targeted else y), BALLS[norm](EPS[norm], targeted)
    judge = _margin(source, y, -1.0 if targeted else 1.0)
    return World(source, x, y, threat, judge, (threat.eps * _dual(norm, w)).expand(N), least)


def _margin(model: nn.Module, y: Tensor, sign: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda x: sign * losses.margin(model(x).detach(), y)


# ---------------------------------------------------------------- curved and piecewise linear models


class _Sphere(nn.Module):
    """Class 0 inside the sphere of radius R around the middle of the box, class 1 outside."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x - 0.5).square().sum(1) - self.radius**2
        return torch.stack((-beyond, beyond), 1) / 2


def _sphere(norm: str) -> World:
    """|c + d|^2 is convex, so its maximum over a ball is a vertex: outwards in every coordinate, along d, or in the largest one."""
    eps, radius = EPS[norm], 0.75
    ray = _uniforms(9, N, 0.12, 0.2) * normals(N, D, key=10).sign()
    ray = ray / _dual("L2", ray)[:, None]
    way = _direction(norm, ray)
    least = eps * torch.linspace(0.2, 0.9, N, dtype=ray.dtype)
    along, size = least * (ray * way).sum(1), least.square() * way.square().sum(1)
    d = (-along + (along.square() - size + radius**2).sqrt())[:, None] * ray  # |d + least way| = radius
    source, y = _Sphere(radius), torch.zeros(N, dtype=torch.int64)
    optimum = (d + eps * way).square().sum(1) - d.square().sum(1)
    return World(source, 0.5 + d, y, BALLS[norm](eps, False), _margin(source, y), optimum, least)


class _Net(nn.Module):
    """2-8-2 with ReLU; the logit of 1 minus that of 0 is v . relu(U x + a) + c."""

    def __init__(self, u: Tensor, a: Tensor, v: Tensor, c: float) -> None:
        super().__init__()
        self.u, self.a, self.v, self.c = nn.Parameter(u), nn.Parameter(a), nn.Parameter(v), c

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x @ self.u.T + self.a).relu() @ self.v + self.c
        return torch.stack((-beyond, beyond), 1) / 2


def _relu_net(norm: str) -> World:
    """Truth by enumeration of the activation regions that meet the ball."""
    u = 2 * normals(8, 2, key=11)
    a, v, eps = -(u * _uniforms(12, 8, 0.2, 0.8, 2)).sum(1), normals(1, 8, key=13)[0], {"Linf": 0.08, "L2": 0.1}[norm]
    x = _uniforms(14, 60, 0.15, 0.85, 2)
    with torch.no_grad():
        c = -float(((x @ u.T + a).relu() @ v).median())
        source = _Net(u, a, v, c)
        x = x[(source(x)[:, 0] > 0)]  # class 0, so that the attack raises v . relu + c
    truth = [_best_and_least(norm, source, row, eps) for row in x]
    kept = [i for i, (_, least) in enumerate(truth) if 0.2 * eps < least < 0.9 * eps][:N]
    assert len(kept) >= 4, "too few examples lie near the boundary"
    best, least = (torch.tensor([truth[i][j] for i in kept], dtype=x.dtype) for j in (0, 1))
    y = torch.zeros(len(kept), dtype=torch.int64)
    judge = _margin(source, y)
    return World(source, x[kept], y, BALLS[norm](eps, False), judge, best - judge(x[kept]), least)


def _best_and_least(norm: str, net: _Net, x: Tensor, eps: float) -> tuple[float, float]:
    """(largest v . relu + c in the ball, least distance to where it is 0); the ball lies inside the box. One affine piece per region."""
    u, a, v = net.u.detach(), net.a.detach(), net.v.detach()
    centre, reach = u @ x + a, eps * _dual(norm, u)
    turning = [i for i in range(8) if abs(float(centre[i])) <= float(reach[i])]  # the others are on, or off, in the whole ball
    best, least = -torch.inf, torch.inf
    for bits in itertools.product((0.0, 1.0), repeat=len(turning)):
        on = (centre > 0).double().index_put((torch.tensor(turning, dtype=torch.int64),), torch.tensor(bits, dtype=x.dtype))
        slope, height = (v * on) @ u, float((v * on) @ a) + net.c
        sides = torch.where(on > 0, -1.0, 1.0)[turning]
        walls, at = sides[:, None] * u[turning], -sides * a[turning]  # walls x <= at
        found = (_by_linear_programmes if norm == "Linf" else _by_active_sets)(x, eps, slope, height, walls, at)
        best, least = max(best, found[0]), min(least, found[1])
    return best, least


def _by_linear_programmes(x: Tensor, eps: float, slope: Tensor, height: float, walls: Tensor, at: Tensor) -> tuple[float, float]:
    """Over x' with walls x' <= at and |x' - x|_inf <= t <= eps: the largest value, and the least t where the value is 0 or more."""
    one, none = torch.ones(2, 1, dtype=x.dtype), torch.zeros(len(at), 1, dtype=x.dtype)
    eye = torch.eye(2, dtype=x.dtype)
    rows = torch.cat((torch.cat((walls, none), 1), torch.cat((eye, -one), 1), torch.cat((-eye, -one), 1)))
    limit = torch.cat((at, x, -x))
    bounds = [(0, 1), (0, 1), (0, eps)]
    most = linprog([*(-slope).tolist(), 0], rows.numpy(), limit.numpy(), bounds=bounds)
    rows = torch.cat((rows, torch.cat((-slope, slope.new_zeros(1)))[None]))
    near = linprog([0, 0, 1], rows.numpy(), torch.cat((limit, limit.new_tensor([height]))).numpy(), bounds=bounds)
    return (height - float(most.fun) if most.status == 0 else -torch.inf), (float(near.fun) if near.status == 0 else torch.inf)


def _by_active_sets(x: Tensor, eps: float, slope: Tensor, height: float, walls: Tensor, at: Tensor) -> tuple[float, float]:
    """The same for L2 in the plane. An optimum is free, on one wall, or where two meet; all such points are tried."""
    normals = torch.cat((walls, slope[None]))
    limits = torch.cat((at, at.new_tensor([-height])))
    points = [x + eps * slope / slope.square().sum().sqrt().clamp_min(1e-300)]
    for normal, limit in zip(normals, limits, strict=True):
        foot = x + (limit - normal @ x) / normal.square().sum().clamp_min(1e-300) * normal
        points.append(foot)
        along = torch.stack((-normal[1], normal[0])) / normal.square().sum().sqrt().clamp_min(1e-300)
        half = (eps**2 - (foot - x).square().sum()).clamp_min(0).sqrt()
        points += [foot + half * along, foot - half * along]
    for i, j in itertools.combinations(range(len(normals)), 2):
        pair = normals[[i, j]]
        if abs(float(pair[0, 0] * pair[1, 1] - pair[0, 1] * pair[1, 0])) > 1e-12:
            points.append(torch.linalg.solve(pair, limits[[i, j]]))
    tried = torch.stack(points)
    far = (tried - x).square().sum(1).sqrt()
    allowed = (far <= eps * (1 + 1e-9)) & (tried @ walls.T <= at + 1e-9).all(1)
    value = tried @ slope + height
    best = value.where(allowed, value.new_tensor(-torch.inf)).amax()
    return float(best), float(far.where(allowed & (value >= -1e-9), far.new_tensor(torch.inf)).amin())


# ---------------------------------------------------------------- the kinds of model

WORLDS: dict[str, Callable[[str], World]] = {
    "linear": _linear,
    "linear in the box": _in_the_box,
    "linear, 4 classes": _several_classes,
    "4 classes, just within reach": lambda norm: _several_classes(norm, edge=True),
    "linear, targeted": lambda norm: _several_classes(norm, targeted=True),
    "linear, transfer": _transfer,
    "logits x 1e-8": lambda norm: _linear(norm, scale=1e-8),
    "logits x 1e4": lambda norm: _linear(norm, scale=1e4),
    "tanh of linear": lambda norm: _linear(norm, squash=True),
    "mean of linear": _mean_of_linear,
    "members of one sign": lambda norm: _mean_of_linear(norm, one_sign=True),
    "random linear": _random_linear,
    "one weight per channel": _one_weight_per_channel,
    "one weight per channel, open inside": lambda norm: _one_weight_per_channel(norm, deep=True),
    "one weight per channel, targeted": lambda norm: _one_weight_per_channel(norm, targeted=True),
    "sphere": _sphere,
    "ReLU net": _relu_net,
}


@functools.lru_cache(maxsize=64)
def world_of(name: str, norm: str) -> World:
    """The world of that name under that norm, made once."""
    return WORLDS[name](norm)
