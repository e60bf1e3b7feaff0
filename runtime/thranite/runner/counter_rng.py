"""Counter-based randomness: a number is a function of (seed, sample index, position, counter) and of nothing else.

Neither batch, slot, order of rows nor device enters, so a request's tokens do not depend on its company. The definition
is the kernels' (`thranite_kernels.rng`); the integers agree bit for bit:

    key   = mix64(mix64(seed) xor (sample_index * 2**32 + position))     64-bit, wrapping; once a row, on the host
    bits  = mix32(mix32(counter xor low32(key)) + high32(key))           32-bit, wrapping
    u     = (bits + 0.5) / 2**32
    E     = -log(1 - u)                                                  standard exponential
    noise = -log(E)                                                      standard Gumbel

`mix64` is one step of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), `mix32`
the finaliser lowbias32 (Christopher Wellons, "hash prospector"). E is taken from 1 - u because a draw's winner has a
small E: from that side float32 resolves all 2**32 values, while -log(u) would round to 0, an infinite noise that wins
whatever its logit, once in 2**25 numbers.

A counter is a token id, or `FIRST_CHUNK` + a chunk of the vocabulary: a token is drawn in two levels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAW_CHUNK = 4096  # token ids of a chunk
FIRST_CHUNK = -(2**31)  # 2**31 as the int32 of the same bits
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX64 = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
_MIX32 = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32))  # factors as the int32 of the same bits
_NEAREST_BELOW_ONE = 1.0 - 2.0**-24  # of float32; the greatest bits round to u = 1, whose E is infinite

UInt64s = NDArray[np.uint64]


def mix64(x: UInt64s) -> UInt64s:
    """The output of splitmix64 after one step from state x."""
    x = x + _GAMMA
    for shift, factor in _MIX64:
        x = (x ^ (x >> np.uint64(shift))) * factor
    return x ^ (x >> np.uint64(31))


def row_keys(mixed_seeds: UInt64s, sample_indices: UInt64s, positions: UInt64s) -> UInt64s:
    """Keys of rows; `mixed_seeds` = mix64(seeds)."""
    counters = (sample_indices << np.uint64(32)) | (positions & np.uint64(0xFFFFFFFF))
    return mix64(mixed_seeds ^ counters)


def random_bits(keys: Tensor, counters: Tensor) -> Tensor:
    """int32 [R, n] of uniform bits, from row keys int64 [R] (the bits of `row_keys`) and counters int32 [n] or [R, n].

    int32 sums and products wrap as uint32 ones do.
    """
    words = keys.view(torch.int32).view(-1, 2)  # little-endian: low half first
    bits = counters ^ words[:, :1]
    scratch = torch.empty_like(bits)
    _mix32_(bits, scratch)
    bits.add_(words[:, 1:])
    _mix32_(bits, scratch)
    return bits


def exponential_logs(keys: Tensor, counters: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, n] of log(E), the negated standard Gumbel noise, from row keys int64 [R] and counters int32 [n] or [R, n]."""
    negated_u = random_bits(keys, counters).view(torch.uint32).to(dtype).add_(0.5).mul_(-(2.0**-32))
    return negated_u.clamp_(min=-_NEAREST_BELOW_ONE).log1p_().neg_().log_()


def _mix32_(x: Tensor, scratch: Tensor) -> None:
    for shift, factor in _MIX32:
        _xor_shifted_(x, shift, scratch)
        x.mul_(factor)
    _xor_shifted_(x, 16, scratch)


def _xor_shifted_(x: Tensor, shift: int, scratch: Tensor) -> None:
    """x ^= x >>> shift. torch shifts int32 arithmetically, so the copied sign bits are cleared."""
    torch.bitwise_right_shift(x, shift, out=scratch)
    x.bitwise_xor_(scratch.bitwise_and_(2 ** (32 - shift) - 1))
