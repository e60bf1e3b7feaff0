"""Pages of a cache as Hopper's attention kernels read them: by tensor map into tiles that wgmma multiplies."""

from __future__ import annotations

from typing import Any

import torch

from .hopper_gemm import CAPABILITY, HALF_TYPES, PANEL
from .launch import swizzled_map
from .target import overlaps, target_of

PAGE = 64
HEAD_SIZES = (64, 128)


def suits_wgmma(kv: torch.Tensor) -> bool:
    """Whether these kernels can read `kv`, [pages, 2, KVH, block_size, D], on its device."""
    block_size, head_dim = kv.shape[3:]
    return (
        block_size == PAGE
        and head_dim in HEAD_SIZES
        and kv.dtype in HALF_TYPES
        and kv.stride(0) % 8 == 0  # tensor maps' steps and starts: 16 bytes
        and int(kv.storage_offset()) % 8 == 0
        and overlaps(kv)
        and target_of(kv.device).capability == CAPABILITY
    )


def page_map(kv: torch.Tensor) -> Any:
    """Tensor map of one layer's cache as [pages, 2·KVH, PAGE, D], a page of one head and 64 dimensions at a time."""
    pages, _, kv_heads, block_size, head_dim = kv.shape
    return swizzled_map(kv.view(pages, 2 * kv_heads, block_size, head_dim), [1, 1, block_size, PANEL])
