"""How much memory a piece of work holds at once, counted tensor by tensor: the same figure on every device and every run."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Held"]


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, counts the bytes of tensors that are made and not yet freed; `most` is their highest sum.

    What was there before does not count, unless it was made within an earlier use of the same object. Scratch space of a library
    within one operation does not count either.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self._see(leaf, 0)
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            self._see(leaf, 1)
        return made

    def _see(self, leaf: object, weight: int) -> None:
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            return
        storage = leaf.untyped_storage()
        if storage._cdata in self._seen:
            return
        size = weight * storage.nbytes()
        self._seen[storage._cdata] = weakref.finalize(storage, self._gone, storage._cdata, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size
