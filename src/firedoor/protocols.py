"""The nouns: what a classifier, model, attack, part, loss, wrapper, data set and diagnostic are.

Everything here is a protocol or a plain value; nothing runs, and nothing imports torch at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

    from firedoor.threat import Threat

__all__ = [
    "Access",
    "Architecture",
    "Attack",
    "Batch",
    "BatchLoss",
    "Budget",
    "Classifier",
    "Dataset",
    "Diagnostic",
    "Estimator",
    "Fit",
    "GradientFn",
    "GradientPart",
    "Learned",
    "LossFn",
    "Model",
    "Objective",
    "Prepared",
    "Returned",
    "SecondView",
    "Semantics",
    "SourceObjective",
    "Specimen",
    "Split",
    "Step",
    "Stops",
    "Store",
    "Symptom",
    "Training",
    "Wrapper",
]

Classifier = Callable[["Tensor"], "Tensor"]
"""Pixels in [0,1], (n, c, h, w) or (n, d), to logits (n, k). A bare `nn.Module` is one."""

GradientFn = Callable[["Tensor"], "Tensor"]
"""x (n, *shape) to the ascent direction of the objective at x, same shape."""

Objective = Callable[["Tensor", "Tensor"], "Tensor"]
"""(logits (n, k), labels (n,)) to one loss per example (n,); an attack raises it."""


LossFn = Callable[["nn.Module", "Batch"], "Tensor"]
"""(module in training mode, batch) to the scalar that training lowers."""


class Access(IntEnum):
    """What an attacker may see of a model; ordered, so `needs <= access` is the test."""

    LABELS = 1
    SCORES = 2
    GRADIENTS = 3


@dataclass(frozen=True)
class Split:
    """Labelled images of one part of a data set. x: (n, *shape) float32 in [0,1]; y: (n,) int64; ids: n texts."""

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Split:
        return Split(self.x[rows], self.y[rows], self.ids[rows])


class Dataset(Protocol):
    """A frozen recipe of labelled inputs in [0,1]. Parts: source, target, development, evaluation."""

    @property
    def classes(self) -> tuple[str, ...]: ...  # names of the labels 0..k-1
    @property
    def shape(self) -> tuple[int, ...]: ...  # of one input, (c, h, w) or (d,)
    @property
    def eight_bit(self) -> bool: ...  # every pixel is an integer / 255

    def split(self, part: str) -> Split: ...
    def digest(self) -> str: ...  # sha256 over the content and ids of all parts


class Architecture(Protocol):
    """A frozen recipe of an untrained network: pixels in [0,1] in, normalisation inside, logits out."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module: ...


class Unfinished(Protocol):
    """Where a long piece of work keeps what it needs to go on after it was killed, and tells what happens."""

    def save(self, tensors: dict[str, Tensor], record: dict[str, object]) -> None: ...
    def load(self) -> tuple[dict[str, Tensor], dict[str, object]] | None: ...
    def clear(self) -> None: ...
    def note(self, event: dict[str, object]) -> None: ...


class Store(Protocol):
    """Where expensive results live under the fingerprint of what they are a function of."""

    def get(
        self,
        kind: str,
        inputs: dict[str, object],
        make: Callable[[], tuple[dict[str, Tensor], dict[str, object]]],
        current: Callable[[dict[str, object]], bool] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, object]]: ...

    def unfinished(self, kind: str, inputs: dict[str, object]) -> Unfinished | None: ...  # None: nothing is kept meanwhile

    def live(self, model: Model) -> Classifier: ...  # loaded once, kept as long as the store object

    def has(self, kind: str, inputs: dict[str, object]) -> bool: ...

    def peek(self, kind: str, inputs: dict[str, object]) -> tuple[dict[str, Tensor], dict[str, object]] | None: ...


class Model(Protocol):
    """A frozen recipe of a classifier."""

    access: ClassVar[Access]

    @property
    def stochastic(self) -> bool: ...  # whether it draws at each query

    def load(self, store: Store) -> Classifier: ...  # live: eval mode, parameters frozen
    def relax(self) -> Model: ...  # what an adaptive attacker differentiates; itself if honest


@runtime_checkable
class Prepared(Protocol):
    """An attack that has to load something, such as a source of its own, before it runs."""

    def load(self, store: Store) -> Callable[[Classifier, Tensor, Tensor], Tensor]: ...


@runtime_checkable
class Learned(Protocol):
    """An attack that trains something of its own before the first example, at each call."""

    @property
    def preparation(self) -> int: ...  # forward+backward passes of training examples, in total


class Budget(Enum):
    """What an attack aims at: the most harm within eps, or the smallest distance that harms."""

    FIXED = "fixed"
    MINIMUM = "minimum"


class Returned(Enum):
    """Which of the points that an attack visits it gives back, per example."""

    LAST = "last"
    BEST_LOSS = "best loss"
    FIRST_SUCCESS = "first success"
    CLOSEST = "closest"
    CLEAN_ON_FAILURE = "clean on failure"


class Stops(Enum):
    """Whether an attack ends early: never, per example, or by one test for the whole batch."""

    NEVER = "never"
    EXAMPLE = "example"
    BATCH = "batch"


@dataclass(frozen=True)
class Semantics:
    """What the output of an attack means. Declared by every attack, and checked by its contract (`firedoor check`).

    mixes_batch: an example's outcome depends on its batch. stochastic: it draws random numbers. targeted: it takes a y_target.
    edits_model: it must be given a copy of the source. logits_only: it refuses probabilities. min_classes: the fewest it works for.
    """

    budget: Budget = Budget.FIXED
    returned: Returned = Returned.LAST
    stops: Stops = Stops.NEVER
    mixes_batch: bool = False
    stochastic: bool = False
    targeted: bool = True
    edits_model: bool = False
    logits_only: bool = False
    min_classes: int = 2
    licence: str = ""

    @property
    def transfers(self) -> bool:
        """Whether its outputs may count for a target: those that hug the source's boundary, or are clean, say nothing of it."""
        return self.budget is Budget.FIXED and self.returned in (Returned.LAST, Returned.BEST_LOSS)


@runtime_checkable
class Attack(Protocol):
    """A frozen recipe: (model, x, y) to x_adv. y = labels to leave, or y_target when threat.targeted."""

    @property
    def threat(self) -> Threat: ...
    @property
    def needs(self) -> Access: ...
    @property
    def semantics(self) -> Semantics: ...
    @property
    def gradients(self) -> int: ...  # forward+backward passes of the source per example (G), at most
    @property
    def queries(self) -> int: ...  # forward passes without a gradient per example, at most

    def __call__(self, model: Classifier, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"]) -> Tensor: ...


class Step(NamedTuple):
    """What a gradient part may know of the loop that calls it."""

    threat: Threat
    step_size: float
    steps: int
    y: Tensor


class GradientPart(Protocol):
    """Decorates a gradient; its state lives in the closure and dies with the call."""

    stochastic: ClassVar[bool]

    def __call__(self, gradient: GradientFn, step: Step) -> GradientFn: ...

    def gradients(self, calls: int) -> int: ...  # inner gradients per example it takes to answer `calls` calls of one run


@runtime_checkable
class SourceObjective(Protocol):
    """An objective that looks inside the source. `start` prepares it for one run on clean x; what it returns is called at each step.

    The loss takes x_adv (m n, *shape), m rows for each of the n examples, and gives one value per row.
    """

    stochastic: ClassVar[bool]

    def start(self, model: Classifier, x: Tensor, y: Tensor) -> GradientFn: ...

    def gradients(self, calls: int) -> int: ...  # forward+backward passes per example of `start` and `calls` calls
    def queries(self, calls: int) -> int: ...  # forward passes per example beside them


class Estimator(Protocol):
    """A gradient from values of the loss alone: for sources that give scores and no gradients."""

    stochastic: ClassVar[bool]

    def __call__(self, loss: GradientFn) -> GradientFn: ...

    def queries(self, calls: int) -> int: ...  # values of the loss per example that `calls` calls take


def _unchanged(x: Tensor) -> Tensor:
    return x


class Batch(NamedTuple):
    """x (n, *shape) already augmented, y (n,), ids (n texts), the epoch counted from 0.

    `augment` gives any other images of these n examples the very draw that x got.
    """

    x: Tensor
    y: Tensor
    ids: Sequence[str]
    epoch: int
    augment: Callable[[Tensor], Tensor] = _unchanged


class BatchLoss(Protocol):
    """What training minimises. `start` loads teachers and stored crafts, and returns the loss: (module, batch) to a scalar."""

    def start(self, store: Store, split: Split) -> LossFn: ...


class Training(Protocol):
    """What training gave. members: weights of one network, or one per cycle; passes: forward+backward passes per training example."""

    @property
    def members(self) -> Sequence[dict[str, Tensor]]: ...
    @property
    def passes(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def record(self) -> dict[str, object]: ...  # plain values to keep beside the weights


class Fit(Protocol):
    """A training recipe, the loss and its attacks included."""

    @property
    def loss(self) -> BatchLoss: ...
    @property
    def cycles(self) -> int: ...
    @property
    def average_from(self) -> float | None: ...

    def train(
        self,
        module: nn.Module,
        split: Split,
        store: Store,
        seed: int,
        work: Unfinished | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Training: ...


class Wrapper(Protocol):
    """An inference-time defence. It cannot be written without saying how it is best attacked."""

    stochastic: ClassVar[bool]

    def wrap(self, model: Classifier, store: Store | None = None) -> Classifier: ...  # store: only trained wrappers need one
    def relax(self, model: Classifier, store: Store | None = None) -> Classifier: ...


@runtime_checkable
class SecondView(Protocol):
    """A wrapper with another way around its step; both are attacked, and the worse counts."""

    def relax_by_identity(self, model: Classifier, store: Store | None = None) -> Classifier: ...


class Specimen(Protocol):
    """False security built into a network: how it is built, and how its gradient is recovered."""

    def build(self, architecture: Architecture, shape: tuple[int, ...], classes: int) -> nn.Module: ...
    def relax(self, module: nn.Module) -> nn.Module: ...


@dataclass(frozen=True)
class Symptom:
    """The outcome of one test for false security. `status`: pass, suspect, fail, void or not_run."""

    id: str
    name: str
    effect: str  # void, cap, mask or note: what a failure does (see docs/evaluation.md)
    status: str
    text: str
    value: float | None = None
    threshold: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    examples: tuple[str, ...] = field(default=())
    passes: int = 0  # of one image through the model, forward or backward, that the test took


class Diagnostic(Protocol):
    """One computable sign of false security: (live classifier, split) to a Symptom. Attacks that it runs arrive as fields."""

    def __call__(self, model: Classifier, split: Split) -> Symptom: ...

    def passes(self, n: int) -> int: ...  # of one image through the model, forward or backward, at most, for a split of n
