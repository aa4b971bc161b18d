"""Two-class classifiers on the features of a network, one for each image, all in one module that an attack can be run on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from firedoor import device, guard, seed
from firedoor.protocols import Classifier, Split

__all__ = ["Features", "OtherRows", "Readouts", "penultimate", "separate"]

RIDGES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # penalties, in mean variances of the inner points
FAR = 5.0  # deviations of the inner scores from their mean to the boundary, where that can be had
CLOSENESS = 0.9  # where the boundary lies between the highest inner score (0) and that of the single point (1)
SURE = 3.0  # deviations between the answers of a random model to the single point that it may fall short by
SCALE = 10.0  # minus the logit difference at the centre of the inner points


class OtherRows(Exception):
    """Somebody asked about some of the images only, so rows cannot be told apart."""


class Features(nn.Module):
    """x (n, *shape) to what enters these layers, side by side (n, width); to the logits if there are none."""

    def __init__(self, model: Classifier, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.training = False
        self.model, self.layers, self.width = model, layers, 1

    def forward(self, x: Tensor) -> Tensor:
        """Where a layer runs on several copies of the batch, such as the draws of an expectation, the mean over copies."""
        inputs, logits = _watched(self.model, self.layers, x)
        if not self.layers:
            return logits.flatten(1)
        runs = [torch.cat([given for name, given in inputs if name == layer]).flatten(1) for layer in self.layers]
        return torch.cat([r.view(-1, len(x), r.shape[1]).mean(0) for r in runs], 1)


class Readouts(nn.Module):
    """x to logits (inner, boundary), by a readout of its own for each of n images: row r belongs to image r modulo n.

    centre, weight: (n, width), double; the boundary is where (features - centre).weight = 1. Errors: OtherRows for a batch that is
    no multiple of n.
    """

    def __init__(self, features: Features, centre: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.training = False
        self.features, self.centre, self.weight = features, centre, weight

    def forward(self, x: Tensor) -> Tensor:
        """(k n, *shape) to (k n, 2)."""
        if len(x) % len(self.centre):
            raise OtherRows
        from_centre = self.features(x).double().view(-1, *self.centre.shape) - self.centre
        ahead = SCALE * (torch.linalg.vecdot(from_centre, self.weight).flatten() - 1)
        return torch.stack([-ahead / 2, ahead / 2], 1).to(x.dtype)

    def only(self, i: int) -> Readouts:
        """The readout of one image, which takes any batch."""
        return Readouts(self.features, self.centre[i : i + 1], self.weight[i : i + 1])


def penultimate(model: Classifier, split: Split) -> tuple[Features, str]:
    """The features, and their name for a text: the input of every linear layer that gives logits, so of each member of an ensemble.

    Without such a layer, the input of the linear layer that ran last. The logits themselves where there is no linear layer, or where
    its rows are not the images. Asks the model about 5 images; `split` must have 2.
    """
    x = split.x[:2].to(device.current())
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)} if isinstance(model, nn.Module) else {}
    with guard.no_side_effects(model), torch.no_grad():
        with seed.streams(0, split.ids[:2], purpose="features"):
            inputs, logits = _watched(model, tuple(linear), x)
        ran = list(dict.fromkeys(name for name, given in inputs if len(given) % len(x) == 0))
        layers = tuple(n for n in ran if linear[n].out_features == logits.shape[1]) or tuple(ran[-1:])
        alone, beside = (_first_row(Features(model, layers), split, x[:k]) for k in (1, 2))
    if not torch.allclose(alone, beside, rtol=1e-3, atol=1e-3 * float(alone.abs().mean())):
        layers = ()  # some networks put the tokens of an image in the batch
    features = Features(model, layers)
    features.width = len(alone) if layers else logits.shape[1]
    return features, f"the input of {', '.join(map(repr, layers))}" if layers else "the logits (no final linear layer was found)"


def separate(points: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner points (n, m, f), and one point asked k times (n, k, f), to centre (n, f), weight (n, f), found (n,): n readouts.

    Each readout is a Newton step from zero of class-balanced logistic regression, under the largest L2 penalty that puts the boundary
    `FAR` from the inner points, or else the one that puts it farthest: a readout that hardly varies among them hides its gradient.
    """
    sound = (torch.isfinite(points).all(2).all(1) & torch.isfinite(edge).all(2).all(1))[:, None, None]
    points, edge = torch.where(sound, points, 0.0), torch.where(sound, edge, 0.0)
    centre = points.mean(1)
    z, asked = points - centre[:, None], edge - centre[:, None]
    e = asked.mean(1)
    variance, axes = _axes(z)
    unit = variance.mean(1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    along = _times(axes.mT, e)
    weight, far = torch.zeros_like(e), torch.zeros_like(e[:, 0])
    for ridge in RIDGES:
        penalty = ridge * unit
        w = e / penalty + _times(axes, along * (1 / (variance + penalty) - 1 / penalty))  # (covariance + penalty)^-1 e
        scores, reached = _times(z, w), _times(asked, w)
        top, own = scores.amax(1), reached.mean(1) - SURE * reached.std(1)
        mark = top + CLOSENESS * (own - top)
        away = torch.where(own > top, mark / scores.std(1), 0.0)
        better = (far < FAR) & (away > far)
        weight, far = torch.where(better[:, None], w / mark[:, None], weight), torch.where(better, away, far)
    return centre, weight, far > 0


def _axes(z: Tensor) -> tuple[Tensor, Tensor]:
    """Centred points (n, m, f) to variances (n, r) and their orthonormal axes (n, f, r), r = min(m, f)."""
    m, f = z.shape[1:]
    variance, axes = torch.linalg.eigh((z.mT @ z if f <= m else z @ z.mT) / m)
    variance = variance.relu()
    if f > m:
        real = (variance > 1e-12 * variance[:, -1:])[:, None]
        axes = z.mT @ torch.where(real, axes / (m * variance).sqrt()[:, None], 0.0)
    return variance, axes


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None])[:, :, 0]


def _first_row(features: Features, split: Split, x: Tensor) -> Tensor:
    with seed.streams(0, split.ids[: len(x)], purpose="features"):
        row: Tensor = features(x)[0]
        return row


def _watched(model: Classifier, layers: tuple[str, ...], x: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """(layer, what entered it) for each time that one of these layers ran, in order; and the logits."""
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda _, given, __: seen.append((name, given[0]))

    hooks = (
        [model.get_submodule(name).register_forward_hook(watch(name)) for name in layers] if isinstance(model, nn.Module) else []
    )
    try:
        return seen, model(x)
    finally:
        for hook in hooks:
            hook.remove()
