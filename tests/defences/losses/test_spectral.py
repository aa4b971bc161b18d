"""Spectral: the bound against the singular values of the dense matrices, after training and between its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from committee_fakes import DIGITS, a_batch, numbers
from defence_fakes import DictStore, Small, Toy, each_epoch, same, weights
from digit_fakes import CNN, NET, accuracy, built, fitted, passes, plain, trained_alike
from torch import Tensor, nn

from firedoor import seed
from firedoor.defences.fit import Fit, Remembering, Watching
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.spectral import Spectral
from firedoor.errors import SpecError
from firedoor.protocols import Batch, Split


def largest(module: nn.Module, shape: tuple[int, ...] = DIGITS.shape) -> list[float]:
    """sigma_max of each layer's linear map on inputs of the size that it gets, from its dense matrix."""
    found: list[float] = []

    def dense(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        size = x[0].numel()
        basis = torch.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
        if isinstance(layer, nn.Conv2d):
            out = nn.functional.conv2d(basis, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            out = nn.functional.linear(basis, layer.weight)  # type: ignore[arg-type]
        found.append(float(torch.linalg.svdvals(out.flatten(1))[0]))

    hooks = [m.register_forward_hook(dense) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        module(numbers(2, *shape))
    for h in hooks:
        h.remove()
    return found


@pytest.mark.parametrize("c", [0.7, 2.0])
@pytest.mark.parametrize("architecture", [NET, CNN], ids=["linear", "convolutions"])
def test_the_bound_holds_after_training(architecture: Any, c: float) -> None:
    free, _ = fitted(CrossEntropy(), architecture, n=200, epochs=3, lr=0.02)
    module, _ = fitted(Spectral(c), architecture, n=200, epochs=3, lr=0.02)
    before, after = largest(free), largest(module)
    assert len(after) == (3 if architecture is NET else 6)
    assert max(before) > c, "nothing to bound"
    assert max(after) <= c, after
    assert max(after) > 0.99 * c, after


def test_it_holds_at_once_and_nothing_but_the_weights_is_scaled() -> None:
    module = built(CNN).train()
    with torch.no_grad():
        for p in module.parameters():
            p *= 5
    before, split = weights(module), DIGITS.split("target")[:20]
    sigma = largest(module)
    live = Spectral(1.0).start(DictStore(), split)
    value = live(module, a_batch(split.x, split.y))
    wanted = nn.functional.cross_entropy(module(split.x), split.y)
    torch.testing.assert_close(value, wanted)
    assert max(largest(module)) <= 1
    after, scales = weights(module), iter(sigma)
    for name, w in before.items():
        torch.testing.assert_close(after[name], w * 0.999 / next(scales) if w.dim() > 1 else w, rtol=2e-3, atol=1e-6)


def test_between_the_epochs_it_holds_nearly() -> None:
    module, seen = built(), []

    class Looking:
        def start(self, store: Any, split: Split) -> Any:
            live = Spectral(1.0).start(store, split)

            def loss(m: nn.Module, batch: Batch) -> Tensor:
                value = live(m, batch)
                seen.append(max(largest(m)))
                return value

            return loss

    Fit(loss=Looking(), epochs=3, batch_size=40, optimiser="adamw", lr=0.01).train(
        module, DIGITS.split("target")[:400], DictStore(), 0
    )
    assert max(seen) < 1.1, max(seen)


def test_it_holds_for_an_average_of_epochs_and_on_a_network_with_statistics() -> None:
    module, _ = fitted(Spectral(1.0), average_from=0.5, n=200, epochs=4, lr=0.02)
    assert max(largest(module)) <= 1
    data = Toy()
    with seed.forked(0, "weights"):
        network = Small(0.2).build(data.shape, 3)
    ends: list[float] = []
    fit = Fit(loss=Spectral(0.9), epochs=3, batch_size=16, lr=0.05, augment="shift")
    fit.train(
        network,
        data.split("target"),
        DictStore(),
        0,
        on_step=each_epoch(fit, lambda: ends.append(max(largest(network.eval(), data.shape)))),
    )
    assert len(ends) == 3
    assert max(ends) <= 0.9, ends


def test_looking_for_the_layers_leaves_the_network_as_it_was() -> None:
    data = Toy()
    split = data.split("target")[:8]
    with seed.forked(0, "weights"):
        module = Small(0.2).build(data.shape, 3).train()
    twin_value_of = CrossEntropy().start(DictStore(), split)
    before, state = weights(module), torch.random.get_rng_state()
    value = Spectral(1e9).start(DictStore(), split)(module, a_batch(split.x, split.y))
    after = weights(module)
    torch.random.set_rng_state(state)
    module.load_state_dict(before)
    assert torch.equal(value, twin_value_of(module, a_batch(split.x, split.y)))
    assert same(after, weights(module)), "statistics are those of one pass of training"
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_a_bound_that_nothing_reaches_is_plain_training() -> None:
    assert trained_alike(Spectral(1e6), CrossEntropy())
    assert not trained_alike(Spectral(0.5), CrossEntropy())


def test_a_training_that_goes_on_from_a_checkpoint_is_the_same() -> None:
    split = DIGITS.split("target")[:40]
    one, other = Spectral(0.5).start(DictStore(), split), Spectral(0.5).start(DictStore(), split)
    assert isinstance(one, Remembering)
    assert isinstance(one, Watching)
    assert isinstance(other, Remembering)
    module = built().train()
    one(module, a_batch(split.x, split.y))
    kept = weights(module)
    other.restore({k: v.clone() for k, v in one.state().items()})
    outcomes = []
    for live in (one, other):
        module.load_state_dict({k: 1.5 * v if v.dim() > 1 else v for k, v in kept.items()})
        live(module, a_batch(split.x, split.y))
        outcomes.append(weights(module))
    assert same(*outcomes)


def test_it_costs_one_pass_and_refuses_fields_that_make_no_sense() -> None:
    assert passes(Spectral()) == 1
    with pytest.raises(SpecError, match=r"Spectral: c must be positive and finite, got 0\. Try 1 to 4"):
        Spectral(0)
    with pytest.raises(SpecError, match=r"Spectral: iterations must be 1 or more, got 0\. Try 3"):
        Spectral(iterations=0)


def test_a_tight_bound_makes_smaller_gradients() -> None:
    module, _ = fitted(Spectral(1.0))
    x, steep = DIGITS.split("evaluation").x[:200], []
    for m in (module, plain()):
        moving = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(m(moving).logsumexp(1).sum(), moving)
        steep.append(float(g.flatten(1).square().sum(1).sqrt().mean()))
    assert steep[0] < 0.5 * steep[1], steep
    assert accuracy(module) > 0.7
