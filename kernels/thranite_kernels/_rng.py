# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of the counter generator that `rng.py` defines."""

import triton
import triton.language as tl

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
FIRST_CHUNK: tl.constexpr = tl.constexpr(-(2**31))
"""The counter of a row's first chunk as int32, 2^31 as uint32: no token id comes near."""


@triton.jit
def splitmix64(x):
    """One step of splitmix64 on a uint64: add the golden gamma, then the variant-13 finaliser."""
    x += tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    x = (x ^ (x >> 30)) * tl.full([], 0xBF58476D1CE4E5B9, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full([], 0x94D049BB133111EB, tl.uint64)
    return x ^ (x >> 31)


@triton.jit
def mix32(x):
    """A 32-bit bijective finaliser (xor-shift-multiply, bias near 0.17) on uint32."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full([], 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def row_key(seed, sample_index, position):
    """The 64-bit key of one (seed, sample index, position); all three scalars, any integer type."""
    counter = (sample_index.to(tl.uint64) << 32) | (position.to(tl.uint64) & 0xFFFFFFFF)
    return splitmix64(splitmix64(seed.to(tl.uint64)) ^ counter)


@triton.jit
def random_bits(key, counter):
    """uint32 bits for each int32 `counter` (a token id, or FIRST_CHUNK + a chunk) under the 64-bit row key."""
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    return mix32(mix32(counter.to(tl.uint32) ^ low) + high)


@triton.jit
def gumbel(bits):
    """-log(E) with E = -log(1 - u), u = (bits + 0.5) / 2^32: full relative precision where E is small (u near 0)."""
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = u * (1.0 + u * (0.5 + u * (0.3333333333333333 + u * 0.25)))
    exact = -LN2 * tl.log2(tl.maximum(1.0 - u, 5.9604644775390625e-08))
    return -LN2 * tl.log2(tl.where(u < 0.0078125, series, exact))


@triton.jit
def random_bits_kernel(seed_ptr, index_ptr, position_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out[r, v] = bits of row r's key at counter v; shows the definition, tests compare it bit by bit."""
    row = tl.program_id(0)
    key = row_key(tl.load(seed_ptr + row), tl.load(index_ptr + row), tl.load(position_ptr + row))
    for start in range(0, n, BLOCK):
        v = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + row * n + v, random_bits(key, v).to(tl.int32, bitcast=True), mask=v < n)
