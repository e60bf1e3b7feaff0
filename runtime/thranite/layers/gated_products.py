"""silu(x Gᵀ) · (x Uᵀ) of many rows: in one kernel, or as a product and an activation.

Which is faster depends on the rows and the GPU, so both are timed where products are (`tuned_products`). llama-8b's on
an H200, in one kernel and in two: 2,880 and 3,012 µs for 8,192 rows (in tiles of 128 rows; tall ones take 2 % less),
369 and 381 for 1,024, 111 and 113 for 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thranite.layers.activation import gated
from thranite.layers.dense import HOPPER_ROWS, SKINNY_GPU_ELEMENTS, cublas_product
from thranite.layers.tuned_products import is_tuning, stopwatch
from thranite.models.spec import Activation

UNTIMED_ROWS = 1024  # from so many on one kernel is taken, if the GPU's multiprocessors end about together
UNTIMED_EVENNESS = 0.9

_faster: dict[tuple[torch.device, int, int, int, torch.dtype], bool] = {}
"""Whether one kernel is, by device, rows, sizes and type of the weight."""


def gated_product(x: Tensor, weight: Tensor) -> Tensor | None:
    """x [T, K], weight [2 N, K] → silu of the first half's product times the second's, [T, N]; None: two kernels are
    faster, or have to do."""
    rows = x.shape[0]
    if not x.is_cuda or rows <= HOPPER_ROWS or weight.numel() <= SKINNY_GPU_ELEMENTS:
        return None
    from thranite_kernels.gated_gemm import SHORT, TALL, evenness, gated_gemm, gated_gemm_launch, takes
    from thranite_kernels.target import target_of

    if not takes(x, weight):
        return None
    key = (x.device, rows, *weight.shape, weight.dtype)
    if is_tuning() and key not in _faster:
        _faster[key] = is_faster(x, weight)
        for tiles in (SHORT, TALL):  # steps of other rows, which may not be timed, find theirs compiled
            gated_gemm_launch(x, weight, out=x.new_empty(rows, weight.shape[0] // 2), tiles=tiles).run()
    faster = _faster.get(key)
    if faster is None:
        even = evenness(rows, weight.shape[0] // 2, target_of(x.device).num_sms)
        faster = rows >= UNTIMED_ROWS and even >= UNTIMED_EVENNESS
    return gated_gemm(x, weight) if faster else None


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether one kernel takes no longer than two: level, it saves the memory for gate and up."""
    from thranite_kernels.gated_gemm import gated_gemm

    clock = stopwatch(x.shape[0], x.device)
    two = clock(lambda: gated(Activation.SILU, cublas_product(x, weight, None)))
    return clock(lambda: gated_gemm(x, weight)) <= two
