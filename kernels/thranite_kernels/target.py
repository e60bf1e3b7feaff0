"""Device facts and every tile table, explicit: nothing is tuned at import or at run time.

A table's rows are chosen by compute capability, padded head size and item size. `dev/bench/kernels.py --tune NAME`
sweeps the candidates of one table on a GPU; docs/performance.md says what was measured where.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

KIB = 1024
SHARED_LIMIT = {80: 163 * KIB, 86: 99 * KIB, 87: 163 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 103: 227 * KIB}
"""Shared memory one block may ask for, bytes, by compute capability (CUDA programming guide, technical limits)."""

COMPILE_TARGETS = (80, 89, 90, 100)
"""Capabilities that every specialisation must compile for."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the host wrappers need to know of a device."""

    capability: int  # 90 for sm_90
    num_sms: int

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory one block may ask for; unknown devices get the smallest limit."""
        return SHARED_LIMIT.get(self.capability, 99 * KIB)

    @property
    def large(self) -> bool:
        """Whether tiles for 160 KiB of shared memory fit (A100, H100, B200), against 99 KiB (A10, L4, RTX)."""
        return self.shared_limit >= 160 * KIB


@lru_cache(maxsize=16)
def _cuda_target(index: int) -> Target:
    facts = torch.cuda.get_device_properties(index)
    return Target(facts.major * 10 + facts.minor, facts.multi_processor_count)


_pretended: Target | None = None


@contextmanager
def pretended(target: Target) -> Iterator[None]:
    """Within it every CUDA device is this one, and so is meta; none is asked."""
    global _pretended
    before, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = before


def target_of(device: torch.device) -> Target:
    """The target of a CUDA device; other devices (interpreter, meta) get a small Hopper, so splits stay exercised."""
    if _pretended is not None and device.type in ("cuda", "meta"):
        return _pretended
    if device.type == "cuda":
        return _cuda_target(torch.cuda.current_device() if device.index is None else device.index)
    return Target(90, 8)


OVERLAP_CAPABILITY = 90
"""From this capability on, a kernel can begin while the one before ends."""


def overlaps(x: torch.Tensor) -> bool:
    """Whether kernels on `x` begin while the one before ends (programmatic dependent launch: sm_90 and later).

    Such a kernel lets its successor start at once, reads what no such kernel writes (weights, tables, work lists), and
    waits for its predecessor's end before it reads or writes anything else.
    """
    if x.is_cuda:
        return (_pretended or _cuda_target(x.get_device())).capability >= OVERLAP_CAPABILITY
    return x.device.type == "meta" and _pretended is not None and _pretended.capability >= OVERLAP_CAPABILITY


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Tiles of `paged_decode`."""

    tile: int  # keys per iteration
    num_warps: int
    num_stages: int
    ctas_per_sm: int  # work is cut into about num_sms · ctas_per_sm equal shares
    min_tiles: int = 2  # a share is never shorter than this many tiles
    whole_tiles: int = 1  # a row of up to this many tiles is never cut
    long_tiles: int = 0  # shares of fewer tiles are enlarged, up to one a multiprocessor
    ahead: int = 4  # tiles of a share asked of L2 before the kernel before has ended, in batches of up to AHEAD_ROWS


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Tiles of `paged_prefill`."""

    block_m: int  # query tokens times heads of one group
    tile: int  # keys per iteration
    num_warps: int
    num_stages: int
    tma: bool = False  # unmasked tiles through tensor-map copies (sm_90 and later, tile within a page)
    wgmma: bool = False  # by `hopper_prefill`


@dataclass(frozen=True, slots=True)
class GemmConfig:
    """Tiles of `skinny_gemm`."""

    block_n: int  # output columns a program
    block_k: int  # reduction elements per iteration
    split_k: int  # programs that share one block of columns
    num_warps: int
    num_stages: int = 4
    dot: bool = True  # tensor cores; otherwise products in fp32 registers (one row only)


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Tiles of `stream_gemm`."""

    block_n: int  # rows of the weight
    block_k: int  # columns a step
    num_stages: int
    ahead: int = 0  # steps asked of L2 before the kernel before has ended, beyond the stages
    programs: int = 0  # 0: one a multiprocessor
    num_warps: int = 4


FusedKind = Literal["norm", "glu", "add"]
"""What a fused product does beside multiplying: see `fused_gemm`."""


@dataclass(frozen=True, slots=True)
class FusedConfig:
    """Tiles of `norm_gemm` and `gemm_add`."""

    block_m: int  # rows of x a program
    block_n: int  # rows of the weight a program: of gate and up together where both are
    block_k: int  # reduction elements per iteration
    split_k: int = 1  # programs that share a tile of the result; 1 with a norm
    num_warps: int = 4
    num_stages: int = 4
    early: bool = True  # whether it begins while the kernel before ends (sm_90 and later)
    ahead: int = 256  # columns of the weight asked of L2 before that end; a power of two, or 0


def decode_config(target: Target, head_dim: int, itemsize: int) -> DecodeConfig:
    """Tiles by padded head size: about 16 KiB of keys a stage in 16-bit caches, half the keys in fp32 ones."""
    if target.capability == 90 and head_dim == 128 and itemsize == 2:
        return _DECODE_HOPPER
    table = _DECODE_LARGE if target.large else _DECODE_SMALL
    config = table[max(64, head_dim)]
    if itemsize == 4:
        return DecodeConfig(max(config.tile // 4, 16), config.num_warps, 2, config.ctas_per_sm)
    return config


# Measured on an H200 for head size 128: one share an SM reads a single row of 32,768 keys in 42 µs, three in 53 µs; at
# 64 and 256 rows of 600 keys they are level (49 and 151 µs). Up to 256 keys are not cut: combining costs a few tiles.
_DECODE_LARGE = {
    64: DecodeConfig(128, 4, 3, 3, whole_tiles=2),
    128: DecodeConfig(64, 4, 3, 1, whole_tiles=4),
    256: DecodeConfig(32, 4, 3, 3, whole_tiles=8),
}
# Of `hopper_decode` on an H200, microseconds with one share a multiprocessor and with two: 8 rows of 2,000 to 4,000
# keys 34.5, 27.4; 16 of these 64.9, 55.1; but 16 rows of 400 to 1,400 keys 20.6, 21.9, and 24 of 400 to 800 18.9, 22.2.
# The portable kernel has the same lists where a window, softcap or sinks need it, with which they were not measured.
_DECODE_HOPPER = DecodeConfig(64, 4, 3, 2, whole_tiles=4, long_tiles=16)
_DECODE_SMALL = {
    64: DecodeConfig(64, 4, 3, 2),
    128: DecodeConfig(32, 4, 3, 2),
    256: DecodeConfig(16, 4, 3, 2),
}


def prefill_config(target: Target, head_dim: int, itemsize: int) -> PrefillConfig:
    """Tiles by padded head size; tensor-map copies on Hopper, where they free registers for the softmax."""
    if itemsize == 4:
        return PrefillConfig(16, 32 if head_dim <= 128 else 16, 4, 1)
    if not target.large:
        return _PREFILL_SMALL[max(64, head_dim)]
    return (_PREFILL_HOPPER if target.capability >= 90 else _PREFILL_LARGE)[max(64, head_dim)]


# Measured on an H200 for head size 128: 8 prompts of 2,048 tokens take 644 µs with 64 query rows and 4 warps, 699 µs
# with 128 rows and 8 warps; one of 16,384 takes 4.65 ms with either.
_PREFILL_HOPPER = {
    64: PrefillConfig(128, 64, 8, 3, tma=True),
    128: PrefillConfig(64, 64, 4, 3, tma=True),
    256: PrefillConfig(128, 64, 8, 2, tma=True),
}
_PREFILL_LARGE = {
    64: PrefillConfig(64, 64, 4, 3),
    128: PrefillConfig(128, 64, 8, 3),
    256: PrefillConfig(64, 32, 8, 2),
}
_PREFILL_SMALL = {
    64: PrefillConfig(64, 64, 4, 2),
    128: PrefillConfig(64, 32, 4, 2),
    256: PrefillConfig(64, 16, 8, 2),
}


STREAM = StreamConfig(block_n=64, block_k=256, num_stages=4)
"""Tiles of `stream_gemm`, whatever the shape: 32 KiB of weights a step, 96 KiB of them on their way.

Measured on an H200, the step of llama-8b's 32 layers at contexts of 256, 1 and 16 rows: 3.97 and 4.30 ms, against 4.27
and 4.63 with 64 x 128 and 8 stages; 4.16 for 1 row with 6 stages, 4.06 with 64 x 128 and two programs an SM. With 128
programs, a layer's products, norms and activation take 115.9 instead of 118.2 µs for 1 row, but 128 instead of 121 for
8."""


def gemm_config(target: Target, rows: int, width: int, depth: int) -> GemmConfig:
    """Tiles of one [rows, depth] x [width, depth]ᵀ product: enough programs to keep every SM loading."""
    wanted = 2 * target.num_sms
    if rows == 1:
        block_k = 1024 if depth % 1024 == 0 else 512
        for block_n in (8, 4):
            if width // block_n >= wanted:
                return GemmConfig(block_n, block_k, 1, 4, 1, dot=False)
        split = min(max(wanted // max(width // 4, 1), 1), max(depth // block_k, 1))
        return GemmConfig(4, block_k, split, 4, 1, dot=False)
    block_n = 32 if width // 32 >= target.num_sms else 16
    split = min(max(wanted // max(width // block_n, 1), 1), max(depth // 512, 1), 8)
    return GemmConfig(block_n, 128, split, 4 if block_n == 32 else 2, 4)


def fused_config(kind: FusedKind, rows: int) -> FusedConfig:
    """Tiles of `norm_gemm` and `gemm_add` by number of rows, for every target: all fit into 99 KiB, so that two
    programs share a multiprocessor and one kernel's begin beside the last of the kernel before."""
    return _FUSED[kind][next((bound for bound in FUSED_BOUNDS if rows <= bound), FUSED_BOUNDS[-1])]


FUSED_BOUNDS = (64,)
"""Most rows of each variant: those above the bound before run through it; the last one takes more, too."""

# For Qwen3-0.6B's products on 132 multiprocessors; `norm`: 4096 x 1024, `glu`: 6144 x 1024, `add`: 1024 x 2048 and
# 1024 x 3072. Measured on an H200, 64 rows, microseconds a layer without attention: 24.5 (23.2 with tiles of their own
# for each, of up to 147 KiB), where cuBLAS, norms and activations take 28.2. At 32 rows they are level, and from 128
# rows on cuBLAS leads (33 against 30 at 128).
_FUSED: dict[FusedKind, dict[int, FusedConfig]] = {
    "norm": {64: FusedConfig(64, 32, 128)},
    "glu": {64: FusedConfig(64, 32, 128)},
    "add": {64: FusedConfig(64, 32, 128, split_k=4)},
}
