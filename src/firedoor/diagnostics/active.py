"""A fight rigged in the attack's favour: an adversarial example is planted beside each image, and the attack has to find one.

An attack that loses here is too weak for this model, whatever it says of the model itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firedoor import device, guard, seed
from firedoor.diagnostics.outcomes import ids_of, passes_of
from firedoor.diagnostics.readouts import Features, OtherRows, Readouts, penultimate, separate
from firedoor.errors import BudgetError, SpecError
from firedoor.intervals import wilson
from firedoor.protocols import Attack, Classifier, Split, Stops, Symptom
from firedoor.threat import Threat

__all__ = ["Active"]

BATCH = 125
NUMBERS = 2**24  # features that are held at once
COPIES = 8  # points of each image in one forward pass
CANDIDATES = 2 * COPIES  # points at exactly eps, of which the one with the farthest features is planted
LEAST = 8  # inner points: fewer are not halved to
NEVER = 99  # halvings of an image that no readout separates


@dataclass(frozen=True)
class Active:
    """C1: the share of images on which `attacks` find an adversarial example that is known to exist.

    Per image, `inner` random points within `fraction` of eps and one point at exactly eps are told apart by a linear readout of the
    penultimate features: two classes, one of them nearly out of reach. The attacks run on that from the image, untargeted or with the
    boundary class as y_target. Any success counts, in float and inside the ball. pass: the Wilson lower bound of success is at least
    `share`. void: random search wins, or no readout is found, on more than 1 - `share`. Images without a readout are failures.
    The inner points are halved until `share` of the images have one, and the text says how many are left. The pass mark is our choice.

    Errors: SpecError for the fields.

    Family: active test. Year: 2022.
    Reference: Zimmermann et al. 2022, arXiv:2206.13991.
    """

    attacks: tuple[Attack, ...]
    inner: int = 999
    share: float = 0.95
    fraction: float = 0.95

    def __post_init__(self) -> None:
        if not self.attacks or any(a.threat != self.attacks[0].threat for a in self.attacks):
            raise SpecError("Active: attacks must be one or more attacks of one threat. Give them the threat of the study.")
        if isinstance(self.inner, bool) or not isinstance(self.inner, int) or self.inner < 2:
            raise SpecError(f"Active: inner must be a whole number of 2 or more, got {self.inner!r}. Use 999, or 200 to be quick.")
        for name in ("share", "fraction"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise SpecError(f"Active: {name} must be a number between 0 and 1, got {value!r}. Use 0.95.")

    def __call__(self, model: Classifier, split: Split) -> Symptom:
        """A Symptom over all images of `split`, whatever the model says of them."""
        n, attacks = len(split), tuple(a for a in self.attacks if a.semantics.min_classes <= 2)
        if reason := self._idle(n, bool(attacks)):
            return Symptom("C1", "active test", "cap", "not_run", reason, n=n)
        features, kind = penultimate(model, split)
        rows = max(1, min(BATCH, NUMBERS // (self.inner * features.width)))
        alone = {i for i, a in enumerate(attacks) if a.semantics.mixes_batch or a.semantics.stops is not Stops.NEVER}
        fights = [self._fight(features, attacks, split[slice(i, i + rows)], alone) for i in range(0, n, rows)]
        halvings, first, won = (torch.cat(parts).cpu() for parts in zip(*fights, strict=True))
        most = int(halvings.sort().values[math.ceil(self.share * n) - 1])
        ready = (halvings <= most) & (halvings < NEVER)
        won, missing = won & ready, int((~ready).sum())
        chance = int((ready & (first < self.inner >> most)).sum())  # random search gets as many points
        k, found = int(won.sum()), wilson(int(won.sum()), n)
        status = "void" if max(chance, missing) > (1 - self.share) * n else "pass" if found.low >= self.share else "fail"
        setting = f"{self.inner >> most} inner points or more, readouts of {kind}"
        text = {
            "pass": f"the attack wins a fight rigged in its favour on {k} of {n} images ({setting})",
            "fail": f"this attack loses a fight rigged in its favour: it wins on {k} of {n} images ({setting})",
            "void": f"no fair fight: random search wins on {chance} of {n} images, and {missing} have no readout of {kind}",
        }[status]
        ids = ids_of(split, ~won)
        return Symptom("C1", "active test", "cap", status, text, found.value, self.share, n, found.low, found.high, ids)

    def passes(self, n: int) -> int:
        """Inner points, random search, the planted points and the attacks; one that divides its batch starts it again, once."""
        work = sum(passes_of(a) for a in self.attacks)
        return 5 + n * (2 * self.inner + CANDIDATES + COPIES + 1 + work + len(self.attacks)) + min(n, BATCH) * work

    def _idle(self, n: int, able: bool) -> str:
        """Why the test cannot run; '' if it can."""
        threat = self.attacks[0].threat
        if threat.norm not in ("Linf", "L2") or threat.eps <= 0:
            return f"points at exactly eps are drawn for Linf and L2 with eps over 0, not for {threat.norm} with {threat.eps:g}"
        if not able:
            return "every attack given needs more than two classes"
        if wilson(n, n).low < self.share:
            return f"too few images: not even {n} of {n} would show {self.share:.0%}"
        return ""

    def _fight(self, features: Features, attacks: tuple[Attack, ...], batch: Split, alone: set[int]) -> tuple[Tensor, ...]:
        """(n,) halvings of the inner points, the first random point that wins, whether an attack does. `alone`: see `_won`; grows."""
        x, threat = batch.x.to(device.current()), attacks[0].threat
        with guard.no_side_effects(features), seed.streams(0, batch.ids, purpose="C1"), torch.no_grad():
            rigged, halvings = self._plant(features, x)
            draws = torch.cat([_beyond(rigged, threat.start(some)).view(-1, len(x)) for some in _copies(x, self.inner)])
        won = [_won(rigged, attack, batch, alone, i) for i, attack in enumerate(attacks)]
        return halvings, torch.where(draws.any(0), draws.int().argmax(0), self.inner), torch.stack(won).any(0)

    def _plant(self, features: Features, x: Tensor) -> tuple[Readouts, Tensor]:
        """The readouts of a batch, and how often the inner points of each image were halved."""
        threat = self.attacks[0].threat
        ball = replace(threat, eps=self.fraction * threat.eps)  # type: ignore[type-var]
        points = torch.cat([_by_image(features(ball.start(some)), len(x)) for some in _copies(x, self.inner)], 1)
        corners = torch.cat([_corner(some, threat) for some in _copies(x, CANDIDATES)])
        edges = torch.cat([_by_image(features(some), len(x)) for some in torch.split(corners, COPIES * len(x))], 1)
        row = torch.arange(len(x), device=x.device)
        chosen = (edges - points.mean(1, keepdim=True)).square().sum(2).nan_to_num(0).argmax(1)
        planted = corners.view(-1, *x.shape)[chosen, row]
        edge = torch.cat([_by_image(features(some), len(x)) for some in _copies(planted, COPIES)], 1)
        centre, weight, halvings = torch.zeros_like(edge[:, 0]), torch.zeros_like(edge[:, 0]), torch.full_like(row, NEVER)
        for k in range(NEVER):
            left = row[halvings == NEVER]
            if not len(left) or (k and self.inner >> k < LEAST):
                break
            middle, w, found = separate(points[left, : self.inner >> k], edge[left])
            some = left[found]
            centre[some], weight[some], halvings[some] = middle[found], w[found], k
        rigged = Readouts(features, centre, weight)
        return rigged, torch.where(_beyond(rigged, planted), halvings, NEVER)  # asked again: is it there for an attack to find?


def _won(rigged: Readouts, attack: Attack, batch: Split, alone: set[int], number: int) -> Tensor:
    """(n,) true where the attack reaches the boundary class. One that divides its batch joins `alone`, and runs image by image."""
    if number not in alone:
        try:
            return _hits(rigged, attack, batch)
        except OtherRows:
            alone.add(number)
    return torch.cat([_hits(rigged.only(i), attack, batch[slice(i, i + 1)]) for i in range(len(batch))])


def _hits(rigged: Readouts, attack: Attack, batch: Split) -> Tensor:
    x = batch.x.to(device.current())
    y = torch.full((len(x),), int(attack.threat.targeted), device=x.device)
    with guard.no_side_effects(rigged), seed.streams(0, batch.ids, purpose="C1"):
        x_adv = attack(rigged, x, y).detach()
        with torch.no_grad():
            return _beyond(rigged, x_adv) & _inside(attack.threat, x_adv, x)


def _beyond(rigged: Readouts, x: Tensor) -> Tensor:
    logits: Tensor = rigged(x)
    return logits[:, 1] > logits[:, 0]  # false for NaN


def _inside(threat: Threat, x_adv: Tensor, x: Tensor) -> Tensor:
    """(n,) whether each row keeps the budget: one that does not is no success, and costs the others nothing."""
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for i in range(len(x)):
        try:
            threat.check(x_adv[i : i + 1], x[i : i + 1])
        except BudgetError:
            kept[i] = False
    return kept


def _corner(x: Tensor, threat: Threat) -> Tensor:
    """A random point at exactly eps: for Linf all pixels by eps, for L2 a random direction, longer where the box has cut it off."""
    d = threat.step(x, x, seed.normal(x), threat.eps) - x
    for _ in range(20):
        longer = (threat.eps / threat.size(d)).nan_to_num(0, 0, 0)
        d = threat.project(x + d * longer.view(-1, *[1] * (x.dim() - 1)), x) - x
    return x + d


def _copies(x: Tensor, times: int) -> list[Tensor]:
    """x, `times` times in all, in blocks whose size depends on nothing else: random streams count blocks."""
    blocks = [min(COPIES, times - i) for i in range(0, times, COPIES)]
    return [x.repeat(k, *[1] * (x.dim() - 1)) for k in blocks]


def _by_image(features: Tensor, n: int) -> Tensor:
    """Rows of n images, copy by copy, to (n, copies, width) in double precision."""
    return features.double().view(-1, n, features.shape[1]).transpose(0, 1)
