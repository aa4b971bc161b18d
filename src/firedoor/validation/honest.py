"""Models that hide nothing: the audit must call none of them masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from firedoor.protocols import Access, Classifier, Model, Store

__all__ = ["HONEST", "Normalised"]

AT = {"loss": {"type": "Madry", "attack": {"type": "PGD", "steps": 5}}}
HONEST: dict[str, dict[str, Any]] = {  # a study's tables; the seed is that of the run
    "linear": {"architecture": {"type": "MLP", "depth": 0}},
    "mlp": {"architecture": {"type": "MLP"}},
    "cnn": {},
    "resnet": {"architecture": {"type": "ResNet"}, "fit": {"epochs": 8}},
    "vgg": {"architecture": {"type": "VGG"}, "fit": {"epochs": 8}},
    "vit": {"architecture": {"type": "ViT"}},
    "mixer": {"architecture": {"type": "Mixer"}},
    "adversarially trained": {"fit": AT},
    "adversarially trained, wide": {"architecture": {"type": "SmallCNN", "width": 16}, "fit": AT},
    "TRADES": {"fit": {"loss": {"type": "TRADES", "steps": 5}}},
    "ensemble": {"type": "Ensemble", "members": ["cnn", "mlp", "vit"]},
    "noise, declared": {"type": "Wrapped", "model": "noisy", "wrapper": {"type": "Noise", "sigma": 0.1, "n": 8}},
}
NOISY = {"fit": {"loss": {"type": "NoiseAugmented", "sigma": 0.1}}}


@dataclass(frozen=True)
class Normalised:
    """`model` with log-probabilities in place of logits: the same labels and losses, nothing hidden."""

    model: Model

    access: ClassVar[Access] = Access.GRADIENTS
    stochastic: ClassVar[bool] = False

    def load(self, store: Store) -> Classifier:
        """The network with a log-softmax behind it."""
        live = self.model.load(store)
        assert isinstance(live, nn.Module)
        return _LogSoftmax(live)

    def relax(self) -> Model:
        """Itself."""
        return self


class _LogSoftmax(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).log_softmax(1)  # type: ignore[no-any-return]
