# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `skinny_gemm`: y = x @ W^T for 1 to 16 rows; every weight is read once."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _finish(
    acc,  # fp32 [BLOCK_M, BLOCK_N], this split's sum
    m,
    n,
    rows,
    y_ptr,
    stride_y,
    bias_ptr,
    part_ptr,
    count_ptr,
    N: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Write the block, or, with several splits, leave it for the split that arrives last, which adds all in order."""
    mask = (m < rows)[:, None] & (n < N)[None, :]
    at = y_ptr + m[:, None] * stride_y + n[None, :]
    if SPLIT_K == 1:
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        part = part_ptr + m[:, None] * N + n[None, :]
        tl.store(part + tl.program_id(1) * (BLOCK_M * N), acc, mask=mask)
        # Every thread's stores must be ordered before the one thread that counts them.
        tl.debug_barrier()
        counter = count_ptr + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT_K - 1:
            tl.store(counter, 0)
            total = tl.zeros(acc.shape, tl.float32)
            for split in tl.static_range(SPLIT_K):
                total += tl.load(part + split * (BLOCK_M * N), mask=mask, other=0.0, cache_modifier=".cg")
            if BIAS:
                total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
            tl.store(at, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def skinny_dot_kernel(
    x_ptr,
    stride_x,  # [M, K]
    w_ptr,
    stride_w,  # [N, K]
    bias_ptr,  # [N] or None
    y_ptr,
    stride_y,  # [M, N]
    part_ptr,  # fp32 [SPLIT_K, BLOCK_M, N]
    count_ptr,  # int32 [cdiv(N, BLOCK_N)], zero between launches
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per (BLOCK_N columns, split): tensor cores, weights copied to shared memory stages ahead."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    steps: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    first = tl.program_id(1) * steps // SPLIT_K
    last = (tl.program_id(1) + 1) * steps // SPLIT_K
    x_at = x_ptr + m[:, None] * stride_x + k[None, :]
    w_at = w_ptr + (n % N).to(tl.int64)[:, None] * stride_w + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for step in range(first, last):
        start = step * BLOCK_K
        if K % BLOCK_K == 0:
            w = tl.load(w_at + start)
            x = tl.load(x_at + start, mask=(m < rows)[:, None], other=0.0)
        else:
            w = tl.load(w_at + start, mask=(start + k < K)[None, :], other=0.0)
            x = tl.load(x_at + start, mask=(m < rows)[:, None] & (start + k < K)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    _finish(acc, m, n, rows, y_ptr, stride_y, bias_ptr, part_ptr, count_ptr, N, SPLIT_K, BLOCK_M, BIAS)


@triton.jit
def skinny_vector_kernel(
    x_ptr,
    w_ptr,
    stride_w,  # [N, K]
    bias_ptr,  # [N] or None
    y_ptr,
    part_ptr,  # fp32 [SPLIT_K, 1, N]
    count_ptr,  # int32 [cdiv(N, BLOCK_N)], zero between launches
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row: products in fp32 registers straight from global memory, the next weights loaded before this sum."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    steps: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    first = tl.program_id(1) * steps // SPLIT_K
    last = (tl.program_id(1) + 1) * steps // SPLIT_K
    w_at = w_ptr + (n % N).to(tl.int64)[:, None] * stride_w + k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    w = tl.load(w_at + first * BLOCK_K, mask=(first * BLOCK_K + k < K)[None, :], other=0.0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for step in range(first, last):
        start = step * BLOCK_K
        ahead = start + BLOCK_K
        # Past the last step nothing is read: the mask compares with this split's own end.
        w_next = tl.load(w_at + ahead, mask=(ahead + k < tl.minimum(last * BLOCK_K, K))[None, :], other=0.0)
        x = tl.load(x_ptr + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * x[None, :]
        w = w_next
    total = tl.sum(acc, axis=1)[None, :]
    _finish(total, tl.arange(0, 1), n, 1, y_ptr, N, bias_ptr, part_ptr, count_ptr, N, SPLIT_K, 1, BIAS)
