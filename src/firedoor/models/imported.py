"""A model that a function of the user's own Python gives."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from firedoor import device
from firedoor.errors import ModelRefused, SpecError
from firedoor.protocols import Access, Classifier, Model, Store

__all__ = ["Imported"]

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Imported:
    """What `function`, written "package.module:name" and called without arguments, returns: pixels in [0,1] to logits (n, k).

    The module is looked up in the working folder first. It runs with all the rights of whoever starts the study, so a study file that
    names one needs `--trust-study`. Its weights and the syntax tree of its module are part of every key.
    Errors: SpecError for another way of writing it; ModelRefused if it cannot be imported or called, or gives no network with
    parameters.

    Family: none. Reference: Paszke et al. 2019, arXiv:1912.01703 (a network as a module).
    """

    function: str
    stochastic: bool = False

    access: ClassVar[Access] = Access.GRADIENTS

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.function):
            raise SpecError(f'Imported: function must be written "package.module:name", got {self.function!r}. Correct it.')

    def load(self, store: Store) -> Classifier:
        """A copy of the network: eval mode, parameters frozen. The one that the function gave stays as it was.

        It gets copies of its inputs, so it may write to them, and what it raises is an Exception with one line of text.
        """
        return device.placed(_Apart(copy.deepcopy(_called(self.function)))).eval().requires_grad_(False)

    def relax(self) -> Model:
        """Itself: nothing is known of its inside."""
        return self

    def digest(self) -> str:
        """sha256 over its weights and buffers, and over the syntax tree of its module."""
        return _digest(self.function)


class _Apart(nn.Module):
    """A stranger's network that cannot reach what it is asked about, nor end or change the program that asks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_default_dtype()
        try:
            logits: Tensor = self.network(x.clone())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if type(error).__module__.startswith("firedoor."):
                raise
            raise ModelRefused(_described(error)) from error
        finally:
            torch.set_default_dtype(kind)
        return logits


def _described(error: BaseException) -> str:
    """One line, whatever its own text does."""
    try:
        said = " ".join(str(error).split())[:200]
    except Exception:  # a stranger's text is a stranger's code
        said = "its text cannot be read"
    if isinstance(error, SystemExit):
        return f"It tried to end the program (SystemExit: {said}). Remove sys.exit from it."
    return f"It raised {type(error).__name__}: {said}"


def _called(function: str) -> nn.Module:
    place, _, name = function.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python` itself would
    try:
        found = getattr(importlib.import_module(place), name)()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ModelRefused(f"{function} gave no model ({_described(error)}). Correct it, or leave it out.") from None
    if not isinstance(found, nn.Module) or next(found.parameters(), None) is None:
        got = "a module without parameters" if isinstance(found, nn.Module) else f"a {type(found).__name__}"
        raise ModelRefused(f"{function} must return an nn.Module with parameters, got {got}. Return the loaded network.")
    return found


@functools.cache
def _digest(function: str) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(_called(function).state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        total.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode() + values.flatten().numpy().tobytes())
    try:
        source = inspect.getsource(sys.modules[function.partition(":")[0]])
    except (OSError, TypeError):
        source = ""  # built in, or compiled
    return hashlib.sha256(total.digest() + ast.dump(ast.parse(source)).encode()).hexdigest()
