"""The counter generator of sampling, defined here once.

A draw is a pure function of the row's values and (seed, sample index, position); batch, slot, step and rank do not
enter.

    key  = splitmix64(splitmix64(seed) xor (sample_index · 2³² + position))        64 bits, once per row
    h(c) = mix32(mix32(c xor key_low) + key_high)                                  32 bits, per counter c
    u    = (h + ½) · 2⁻³²        E = −log(1 − u)        gumbel(c) = −log(E)        fp32

A token is drawn in two levels, so that a row takes some 4,000 numbers and not one for each of its vocabulary:

    chunk = arg-max over chunks b of log Σ exp(x) + gumbel(2³¹ + b)                DRAW_CHUNK neighbours each
    token = arg-max over its ids v of x + gumbel(v)

The first arg-max takes each chunk by its share of the row, the second each id by its share of the chunk (Gumbel-max;
top-down as in Maddison, Tarlow and Minka, "A* Sampling", 2014), so the token has the softmax of x.

`splitmix64` adds 0x9E3779B97F4A7C15 and applies the finaliser (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31);
`mix32` is the finaliser (16, 0x7FEB352D, 15, 0x846CA68B, 16). All integer arithmetic wraps.

Why E from 1 − u: the winner of an arg-max over V tokens has E near 1/V. Taking E = −log(u) puts that at u near 1, where
fp32 has steps of 6·10⁻⁸ (1.0 itself would occur, and win every time); from the small side every one of the 2³² values
stays distinct. The integers are exact on every device; the two logarithms are not, so ties within rounding may differ.
"""

from __future__ import annotations

import torch

from ._rng import random_bits_kernel
from .launch import Launch

DRAW_CHUNK = 4096
"""Token ids of one chunk. Part of the definition: another size draws other tokens."""
FIRST_CHUNK = 1 << 31
"""The counter of a row's first chunk."""
_M32 = 0xFFFFFFFF


def _mul64(a: int, b: int) -> int:
    return (a * b) & 0xFFFFFFFFFFFFFFFF


def splitmix64(x: int) -> int:
    """One splitmix64 step on a Python integer taken modulo 2⁶⁴."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = _mul64(x ^ (x >> 30), 0xBF58476D1CE4E5B9)
    x = _mul64(x ^ (x >> 27), 0x94D049BB133111EB)
    return x ^ (x >> 31)


def row_key(seed: int, sample_index: int, position: int) -> int:
    """The 64-bit key of one row's draw; `seed` is any signed or unsigned 64-bit integer."""
    counter = ((sample_index & _M32) << 32) | (position & _M32)
    return splitmix64(splitmix64(seed & 0xFFFFFFFFFFFFFFFF) ^ counter)


def _mul32(x: torch.Tensor, c: int) -> torch.Tensor:
    """x · c modulo 2³² in int64: split so that no product leaves 63 bits."""
    return ((x & 0xFFFF) * c + ((((x >> 16) * c) & 0xFFFF) << 16)) & _M32


def mix32(x: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser on int64 tensors holding values below 2³²."""
    x = _mul32(x ^ (x >> 16), 0x7FEB352D)
    x = _mul32(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def random_bits_reference(
    seeds: list[int], sample_indices: list[int], positions: list[int], counters: torch.Tensor
) -> torch.Tensor:
    """`h` for each row and counter: int64 [R, n] with values below 2³²."""
    rows = []
    for seed, index, position in zip(seeds, sample_indices, positions, strict=True):
        key = row_key(seed, index, position)
        rows.append(mix32((mix32(counters.long() ^ (key & _M32)) + (key >> 32)) & _M32))
    return torch.stack(rows) if rows else counters.new_empty(0, counters.numel(), dtype=torch.int64)


def gumbel_reference(bits: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel values of `bits` (int64 below 2³²), in float64."""
    u = (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-u))


def random_bits(seeds: torch.Tensor, sample_indices: torch.Tensor, positions: torch.Tensor, n: int) -> torch.Tensor:
    """`h` for counters 0..n−1 on the device: int64 [R, n]; seeds int64 [R], indices and positions int32 [R]."""
    out = torch.empty(seeds.shape[0], n, dtype=torch.int32, device=seeds.device)
    random_bits_launch(seeds, sample_indices, positions, out).run()
    return out.long() & _M32


def random_bits_launch(
    seeds: torch.Tensor, sample_indices: torch.Tensor, positions: torch.Tensor, out: torch.Tensor
) -> Launch:
    """The launch behind `random_bits`."""
    rows, n = out.shape
    args = {"seed_ptr": seeds, "index_ptr": sample_indices, "position_ptr": positions, "out_ptr": out, "n": n}
    return Launch(random_bits_kernel, (rows,), args, {"BLOCK": 1024})
