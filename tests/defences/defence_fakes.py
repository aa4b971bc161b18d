"""Small stand-ins that make the tests of defences independent of the other rooms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.fit import Fit
from firedoor.protocols import Access, Classifier, Model, Semantics, Split, Store
from firedoor.spec import canonical
from firedoor.threat import Linf, Threat

DEFAULT = Linf(16 / 255)


class DictStore:
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.made: list[str] = []

    def get(
        self,
        kind: str,
        inputs: dict[str, object],
        make: Callable[[], tuple[dict[str, Tensor], dict[str, object]]],
        current: Callable[[dict[str, object]], bool] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        key = kind + canonical(inputs)
        if key not in self.kept:
            tensors, record = make()
            self.made.append(kind)
            self.kept[key] = tensors, {**record, "digest": hashlib.sha256(key.encode()).hexdigest()}
        found: tuple[dict[str, Tensor], dict[str, object]] = self.kept[key]
        return found

    def has(self, kind: str, inputs: dict[str, object]) -> bool:
        return kind + canonical(inputs) in self.kept

    def unfinished(self, kind: str, inputs: dict[str, object]) -> None:
        return None

    def live(self, model: Model) -> Classifier:
        return model.load(self)

    def peek(self, kind: str, inputs: dict[str, object]) -> Any:
        return self.kept.get(kind + canonical(inputs))


def each_epoch(fit: Fit, do: Callable[[], object]) -> Callable[[int, int], None]:
    """For `on_step`: calls `do` after the last batch of each epoch."""

    def step(done: int, steps: int) -> None:
        if done % (steps // fit.epochs) == 0:
            do()

    return step


@dataclass(frozen=True)
class Toy:
    """Three classes of images: one channel third is brighter than the rest. 8-bit."""

    n: int = 60
    side: int = 8
    channels: int = 1
    eight_bit: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = ("top", "middle", "bottom")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.side, self.side)

    def split(self, part: str) -> Split:
        ids = tuple(f"{part}-{i}" for i in range(self.n))
        y = torch.arange(self.n) % 3
        x = torch.zeros(self.n, *self.shape)
        with seed.streams(0, ids, purpose="toy"):
            x = 0.3 + seed.normal(x, 0.05)
        third = self.side // 3
        for i, label in enumerate(y.tolist()):
            x[i, :, label * third : (label + 1) * third] += 0.35
        return Split((255 * x).round().clamp(0, 255) / 255, y, ids)

    def digest(self) -> str:
        return f"toy {self.n} {self.side} {self.channels}"


TOY = Toy()


@dataclass(frozen=True)
class Ascent:
    """Steps of `share` eps on the cross-entropy; one gradient per step. `start`: begin at a keyed random point."""

    threat: Threat = DEFAULT
    steps: int = 1
    start: bool = False
    share: float = 1.0
    fails: bool = False

    needs: ClassVar[Access] = Access.GRADIENTS
    semantics: ClassVar[Semantics] = Semantics()
    queries: ClassVar[int] = 0

    @property
    def gradients(self) -> int:
        return self.steps

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self.threat.start(x) if self.start else x
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_(True)
            loss = nn.functional.cross_entropy(model(x_adv), y, reduction="sum")
            if self.fails:
                raise RuntimeError("the attack broke")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = self.threat.step(x_adv.detach(), x, gradient, self.share * self.threat.eps)
        return x_adv.detach()


class Net(nn.Module):
    """Convolution, batch norm, dropout: everything that an inner attack could disturb."""

    def __init__(self, shape: tuple[int, ...], classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6 * shape[1] * shape[2], 12),
            nn.ReLU(),
            nn.Linear(12, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


@dataclass(frozen=True)
class Small:
    dropout: float = 0.0

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Net(shape, classes, self.dropout)


def net(data: Toy, dropout: float = 0.0, key: int = 0) -> nn.Module:
    with seed.forked(key, "weights"):
        return Net(data.shape, len(data.classes), dropout)


@dataclass(frozen=True)
class Fixed:
    """A network with the initial weights of `key`, never trained: enough to be a source or a teacher."""

    data: Toy = TOY
    key: int = 7

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def load(self, store: Store) -> nn.Module:
        return net(self.data, key=self.key).eval().requires_grad_(False)

    def relax(self) -> Model:
        return self


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Shown(nn.Module):
    """A network that remembers what it is shown."""

    def __init__(self, data: Toy) -> None:
        super().__init__()
        self.inner, self.shown = net(data).eval(), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach())
        out: Tensor = self.inner(x)
        return out
