"""Per-example random streams: the only place that draws random numbers or touches random state.

Numbers come from Philox4x32-10, a counter-based generator in integer arithmetic: the same bits on every device, and each example's
bits depend on its own id alone, never on its batch. Reference: Salmon et al. 2011, doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = [
    "forked",
    "generator_state",
    "integers",
    "normal",
    "normal_as_dropout",
    "order",
    "own_streams",
    "philox",
    "restore_generator",
    "streams",
    "subset",
    "uniform",
]

MASK = 0xFFFFFFFF
TURN = 0x1E3779B97F4A7C15  # odd, so that turns of an example never meet


@dataclass
class _Stream:
    key: tuple[int, int]
    ids: Tensor  # (n,) int64, a hash of each example's id
    calls: int = 0


_current: ContextVar[_Stream | None] = ContextVar("stream", default=None)


@contextmanager
def streams(seed: int, ids: Sequence[str], draw: int = 0, purpose: str = "") -> Iterator[None]:
    """Within this context, row i of every draw depends on (seed, purpose, draw, ids[i]) and on how many draws came before it."""
    hashed = torch.tensor([_hash64(i.encode()) for i in ids], dtype=torch.int64)
    token = _current.set(_Stream(_key(f"{seed}/{draw}/{purpose}"), hashed))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def own_streams(x: Float[Tensor, "n *shape"], purpose: str) -> Iterator[None]:
    """Keep the streams of the caller; where there are none, an example's id is the digest of its pixels."""
    stream = _current.get()
    if stream is not None and len(stream.ids) and len(x) % len(stream.ids) == 0:
        yield
        return
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    with streams(0, [hashlib.sha256(row.tobytes()).hexdigest() for row in pixels], purpose=purpose):
        yield


@contextmanager
def subset(of: Int64[Tensor, " m"], turn: Int64[Tensor, " m"]) -> Iterator[None]:
    """Within this context, row r of a draw belongs to example of[r] of the caller's stream, in that example's turn turn[r].

    For attacks that ask a random model about some of their examples only: what one example is given depends on its own turns, not
    on which others were asked beside it. A pair of example and turn must not come twice.
    """
    stream = _current.get()
    if stream is None:
        yield
        return
    own = stream.ids[of.cpu()] + (turn.cpu() + 1) * TURN  # overflow wraps
    token = _current.set(_Stream((stream.key[0] ^ MASK, stream.key[1]), own))
    try:
        yield
    finally:
        _current.reset(token)


def uniform(like: Float[Tensor, "n *shape"], low: float, high: float) -> Float[Tensor, "n *shape"]:
    """Uniform numbers of [low, high) in the shape, dtype and device of `like`.

    A batch of m n rows, for the n ids of the context, is m different draws of each. Outside any context the numbers are fresh.
    """
    bits = _bits(like)
    unit = (bits >> 8).to(like.dtype) * 2.0**-24
    return low + (high - low) * unit


def normal(like: Float[Tensor, "n *shape"], sigma: float = 1.0) -> Float[Tensor, "n *shape"]:
    """Gaussian numbers with deviation sigma (Box-Muller), shaped and keyed as in `uniform`."""
    rows, size = len(like), like[0:1].numel()
    pairs = like.new_empty(rows, 2, -(-size // 2))
    radius, angle = uniform(pairs, 0, 1).unbind(1)
    radius = (-2 * (1 - radius).clamp_min(2.0**-25).log()).sqrt()
    angle = 2 * math.pi * angle
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return sigma * numbers[:, :size].reshape(like.shape)


def normal_as_dropout(like: Float[Tensor, "n *shape"], sigma: float = 1.0) -> Float[Tensor, "n *shape"]:
    """Gaussian numbers from torch's global generator, which `forked` sets: for noise that a layer adds while it trains."""
    return sigma * torch.randn_like(like)


def integers(like: Float[Tensor, "n *shape"], high: int) -> Int64[Tensor, " n"]:
    """One whole number of 0..high-1 per row of `like`, keyed as in `uniform`."""
    row = like.detach().reshape(len(like), -1)[:, :1]
    return (_bits(row)[:, 0] * high) >> 32


def generator_state() -> Tensor:
    """Where torch's global generator on the CPU stands, as bytes."""
    return torch.random.get_rng_state()


def restore_generator(state: Tensor) -> None:
    """Put torch's global generator on the CPU back."""
    torch.random.set_rng_state(state)


@contextmanager
def forked(seed: int, purpose: str = "") -> Iterator[None]:
    """Run with torch's global generator set from (seed, purpose), and put back what it was.

    For initial weights, dropout, and noise inside a network in training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_key(f"{seed}/{purpose}")[0])  # its generator takes 32 bits and drops the rest
        yield


def order(n: int, seed: int, purpose: str = "") -> np.ndarray:
    """A permutation of 0..n-1 that depends on (seed, purpose) alone."""
    return np.random.Generator(np.random.Philox(list(_key(f"{seed}/{purpose}")))).permutation(n)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words; four words out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # overflow wraps; the bits are right
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _bits(like: Tensor) -> Tensor:
    """32 random bits per element of `like`, as int64."""
    rows, size = len(like), like[0:1].numel()
    stream = _current.get()
    if stream is None:
        key = int.from_bytes(os.urandom(8), "big")
        stream = _Stream((key >> 32, key & MASK), torch.arange(rows))
    stream.calls += 1
    if rows == 0 or size == 0:
        return torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    known = len(stream.ids)
    if rows % known:
        raise AssertionError(f"a draw of {rows} rows does not fit the {known} examples of this stream")
    ids = stream.ids.to(like.device).repeat(rows // known)[:, None]
    copy = torch.arange(rows, device=like.device)[:, None] // known
    block = torch.arange(math.ceil(size / 4), device=like.device)[None, :]
    zero = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
    words = philox((block + zero, (copy << 20 | stream.calls & 0xFFFFF) & MASK, ids >> 32 & MASK, ids & MASK), stream.key)
    return torch.stack(words, dim=2).reshape(rows, -1)[:, :size].reshape(like.shape)


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


def _key(text: str) -> tuple[int, int]:
    word = _hash64(text.encode())
    return word >> 32 & MASK, word & MASK
