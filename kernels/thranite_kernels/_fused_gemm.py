# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `gemm_add` and `norm_gemm`: a product of few rows with what stands before and after it in a layer."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._glu import activate


@triton.jit
def _fetch_ahead(w_at, first, K: tl.constexpr, COLUMNS: tl.constexpr):
    """Ask L2 for COLUMNS elements of each row that starts at `w_at`, from column `first` on, or for the last ones."""
    CHUNK: tl.constexpr = 256 if COLUMNS > 256 else COLUMNS
    chunk = tl.arange(0, COLUMNS // CHUNK) * CHUNK
    at = (w_at[:, None] + tl.minimum(first + chunk, K - CHUNK)[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [at, tl.full(at.shape, CHUNK * 2, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _product(
    x_at, w_at, k, live, first, last,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile's sum over steps `first` to `last`; `live` [BLOCK_M]: rows that there are."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(first, last):
        start = step * BLOCK_K
        if K % BLOCK_K == 0:
            w = tl.load(w_at + start)
            x = tl.load(x_at + start, mask=live[:, None], other=0.0)
        else:
            w = tl.load(w_at + start, mask=(start + k < K)[None, :], other=0.0)
            x = tl.load(x_at + start, mask=live[:, None] & (start + k < K)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["eps", "rows"])
def norm_gemm_kernel(
    x_ptr,
    stride_x,  # [M, K], the stream times the norm's weight
    squares_ptr,  # fp32 [M, PARTS], sums of squares of parts of the stream's rows
    w_ptr,
    stride_w,  # [N, K], or [2 N, K] with an activation: gate, then up
    bias_ptr,  # as many as w has rows, or None
    y_ptr,
    stride_y,  # [M, N]
    eps,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # rows of w a program
    BLOCK_K: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per (columns, rows): the product, divided by the root of the rows' mean squares."""
    WIDE: tl.constexpr = BLOCK_N if ACTIVATION == "none" else BLOCK_N // 2
    n = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    live = m < rows
    # Gate and up of one column stand side by side, so that one thread gets both.
    local = tl.arange(0, BLOCK_N)
    PAIR: tl.constexpr = BLOCK_N // WIDE
    w_row = (tl.program_id(0) * WIDE + local // PAIR) % N + local % PAIR * N
    if BIAS:
        bias = tl.load(bias_ptr + w_row).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        if AHEAD > 0:
            _fetch_ahead(w_ptr + w_row * stride_w, 0, K, AHEAD)
        gdc_wait()
    part = tl.arange(0, BLOCK_PARTS)
    squares = tl.load(
        squares_ptr + m[:, None] * PARTS + part[None, :], mask=live[:, None] & (part < PARTS)[None, :], other=0.0
    )
    x_at = x_ptr + m[:, None] * stride_x + k[None, :]
    w_at = w_ptr + w_row[:, None] * stride_w + k[None, :]
    acc = _product(x_at, w_at, k, live, 0, (K + BLOCK_K - 1) // BLOCK_K, K, BLOCK_M, BLOCK_N, BLOCK_K)
    acc *= tl.rsqrt(tl.sum(squares, axis=1) / K + eps)[:, None]
    if BIAS:
        acc += bias[None, :]
    if ACTIVATION != "none":
        gate, up = tl.split(tl.reshape(acc, [BLOCK_M, WIDE, 2]))
        acc = activate(gate, ACTIVATION) * up
    at = y_ptr + m[:, None] * stride_y + n[None, :]
    tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=live[:, None] & (n < N)[None, :])


@triton.jit
def _add_splits(
    acc, tile, part_ptr, count_ptr, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Leave this split's sum for the one that arrives last, which gets (all of them added in order, True)."""
    local = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    part = part_ptr + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + local
    tl.store(part + tl.program_id(1) * (BLOCK_M * BLOCK_N), acc)
    # Every thread's stores must be ordered before the one thread that counts them.
    tl.debug_barrier()
    last = tl.atomic_add(count_ptr + tile, 1, sem="acq_rel") == SPLIT_K - 1
    if last:
        tl.store(count_ptr + tile, 0)
        acc = tl.zeros(acc.shape, tl.float32)
        for split in tl.static_range(SPLIT_K):
            acc += tl.load(part + split * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
    return acc, last


@triton.jit
def _write_sum(
    total, live, m, n, y_ptr, stride_y, norm, scaled_ptr, squares_ptr, N: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """The stream, and of it as rounded: times the next norm's weight, and the squares' sums. `total` fp32."""
    both = live[:, None] & (n < N)[None, :]
    stream = total.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + m[:, None] * stride_y + n[None, :], stream, mask=both)
    total = stream.to(tl.float32)
    scaled = (total * norm[None, :]).to(scaled_ptr.dtype.element_ty)
    tl.store(scaled_ptr + m[:, None] * N + n[None, :], scaled, mask=both)
    squares = tl.sum(tl.where(both, total * total, 0.0), axis=1)
    tl.store(squares_ptr + m * PARTS + tl.program_id(0), squares, mask=live)


@triton.jit(do_not_specialize=["rows"])
def gemm_add_kernel(
    x_ptr,
    stride_x,  # [M, K]
    w_ptr,
    stride_w,  # [N, K]
    bias_ptr,  # [N] or None
    y_ptr,
    stride_y,  # [M, N], the stream, updated in place
    norm_ptr,  # [N]
    scaled_ptr,  # [M, N]
    squares_ptr,  # fp32 [M, cdiv(N, BLOCK_N)]
    part_ptr,  # fp32 [tiles, SPLIT_K, BLOCK_M, BLOCK_N]
    count_ptr,  # int32 [tiles], zero between launches
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BIAS: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per (columns, split, rows): y += x W^T, and what the product after the next norm needs of y."""
    PARTS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    live = m < rows
    first = tl.program_id(1) * STEPS // SPLIT_K
    last = (tl.program_id(1) + 1) * STEPS // SPLIT_K
    norm = tl.load(norm_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        if AHEAD > 0:
            _fetch_ahead(w_ptr + (n % N) * stride_w, first * BLOCK_K, K, AHEAD)
        gdc_wait()
    both = live[:, None] & (n < N)[None, :]
    stream = tl.load(y_ptr + m[:, None] * stride_y + n[None, :], mask=both, other=0.0)
    x_at = x_ptr + m[:, None] * stride_x + k[None, :]
    w_at = w_ptr + (n % N)[:, None] * stride_w + k[None, :]
    acc = _product(x_at, w_at, k, live, first, last, K, BLOCK_M, BLOCK_N, BLOCK_K)
    complete = True
    if SPLIT_K > 1:
        tile = tl.program_id(2) * PARTS + tl.program_id(0)
        acc, complete = _add_splits(acc, tile, part_ptr, count_ptr, SPLIT_K, BLOCK_M, BLOCK_N)
    if complete:
        if BIAS:
            acc += bias[None, :]
        acc += stream.to(tl.float32)
        _write_sum(acc, live, m, n, y_ptr, stride_y, norm, scaled_ptr, squares_ptr, N, PARTS)
