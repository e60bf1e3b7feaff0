# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `stream_gemm`: yᵀ = W xᵀ for few rows of x, by programs that walk equal shares of W."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def _owner(step, TOTAL: tl.constexpr, PROGRAMS: tl.constexpr):
    """The program whose share [p TOTAL // PROGRAMS, (p + 1) TOTAL // PROGRAMS) holds `step`."""
    return ((step + 1) * PROGRAMS - 1) // TOTAL


@triton.jit
def _fetch_ahead(
    w_ptr, stride_w, step,
    N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Ask L2 for a step's weights, in pieces of 64 columns (128 bytes)."""
    piece = tl.arange(0, BLOCK_N * BLOCK_K // 64)
    n = tl.minimum(step // STEPS * BLOCK_N + piece // (BLOCK_K // 64), N - 1)
    k = tl.minimum(step % STEPS * BLOCK_K + piece % (BLOCK_K // 64) * 64, K - 64)
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [(w_ptr + n.to(tl.int64) * stride_w + k).to(tl.int64), tl.full(n.shape, 128, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _wait_within_loop():
    """`gdc_wait` as text: where a loop holds the operation itself, Triton 3.9 copies nothing ahead."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _load_x(x_at, rows, step, STEPS: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """x's columns of a step; past the share's end some others."""
    start = step % STEPS * BLOCK_K
    inside = start + tl.arange(0, BLOCK_K) < K
    return tl.load(x_at + start, mask=(tl.arange(0, BLOCK_M) < rows)[:, None] & inside[None, :], other=0.0)


@triton.jit
def _store(
    acc, block, program, m, rows, y_ptr, stride_y, bias_ptr, part_ptr,
    N: tl.constexpr, STEPS: tl.constexpr, TOTAL: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Write the block, or, where several programs share it, this program's part: of the block where its share begins
    as its first part, of the block where it ends as its second."""
    local = tl.arange(0, BLOCK_N)
    n = block * BLOCK_N + local
    first = _owner(block * STEPS, TOTAL, PROGRAMS)
    last = _owner((block + 1) * STEPS - 1, TOTAL, PROGRAMS)
    if first == last:
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        at = y_ptr + m[None, :] * stride_y + n[:, None]
        tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=(m < rows)[None, :] & (n < N)[:, None])
    else:
        part = part_ptr + local[:, None] * BLOCK_M + m[None, :]
        tl.store(part + (2 * program + (program == first).to(tl.int32)) * (BLOCK_N * BLOCK_M), acc)


@triton.jit
def _combine(
    block, m, rows, y_ptr, stride_y, bias_ptr, part_ptr, count_ptr,
    N: tl.constexpr, STEPS: tl.constexpr, TOTAL: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """The last program to arrive at a shared block adds its parts in the order of the programs, and writes it."""
    first = _owner(block * STEPS, TOTAL, PROGRAMS)
    last = _owner((block + 1) * STEPS - 1, TOTAL, PROGRAMS)
    if first != last:  # noqa: SIM102 - `and` would count arrivals at every block
        if tl.atomic_add(count_ptr + block, 1, sem="acq_rel") == last - first:
            tl.store(count_ptr + block, 0)
            local = tl.arange(0, BLOCK_N)
            n = block * BLOCK_N + local
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            part = part_ptr + local[:, None] * BLOCK_M + m[None, :]
            for other in range(first, last + 1):
                index = 2 * other + (other == first).to(tl.int32)
                total += tl.load(part + index * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
            if BIAS:
                total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
            at = y_ptr + m[None, :] * stride_y + n[:, None]
            tl.store(at, total.to(y_ptr.dtype.element_ty), mask=(m < rows)[None, :] & (n < N)[:, None])


@triton.jit(do_not_specialize=["rows"])
def stream_gemm_kernel(
    x_ptr,
    stride_x,  # [M, K]
    w_ptr,
    stride_w,  # [N, K]
    w_desc,  # the same as tensor map
    bias_ptr,  # [N] or None
    y_ptr,
    stride_y,  # [M, N]
    part_ptr,  # fp32 [2 * PROGRAMS, BLOCK_N, BLOCK_M]
    count_ptr,  # int32 [cdiv(N, BLOCK_N)], zero between launches
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BIAS: tl.constexpr,
    AHEAD: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per share of the (block of BLOCK_N weights' rows, step of BLOCK_K columns) pairs, in row-major order.

    With PDL the program starts while the kernel before still runs. The compiler has STAGES - 1 steps of weights copied
    to shared memory ahead of the loop, and the wait is in the loop: x alone waits. L2 is asked for AHEAD steps more.
    """
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    TOTAL: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N * STEPS
    program = tl.program_id(0)
    first = program * TOTAL // PROGRAMS
    last = (program + 1) * TOTAL // PROGRAMS
    if PDL:
        gdc_launch_dependents()
        for step in range(first + STAGES - 1, tl.minimum(first + STAGES - 1 + AHEAD, last)):
            _fetch_ahead(w_ptr, stride_w, step, N, K, STEPS, BLOCK_N, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    x_at = x_ptr + m[:, None] * stride_x + tl.arange(0, BLOCK_K)[None, :]
    # x is carried, loaded a step ahead: loaded in the step that needs it, it would be copied ahead of the loop, too.
    x_next = tl.zeros([BLOCK_M, BLOCK_K], x_ptr.dtype.element_ty)
    for step in range(first, last):
        block = step // STEPS
        start = step % STEPS * BLOCK_K
        w = w_desc.load([block * BLOCK_N, start])
        if step == first:
            if PDL:
                _wait_within_loop()
            x_next = _load_x(x_at, rows, step, STEPS, K, BLOCK_M, BLOCK_K)
        x = x_next
        x_next = _load_x(x_at, rows, step + 1, STEPS, K, BLOCK_M, BLOCK_K)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        if (start + BLOCK_K >= K) | (step == last - 1):
            _store(
                acc, block, program, m, rows, y_ptr, stride_y, bias_ptr, part_ptr,
                N, STEPS, TOTAL, PROGRAMS, BLOCK_M, BLOCK_N, BIAS,
            )  # fmt: skip
            acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    # Every thread's stores must be ordered before the one thread that counts them. (Not in the loop: the compiler
    # loads ahead only where there is no barrier and no loop inside.)
    tl.debug_barrier()
    begin = first // STEPS
    end = (last - 1) // STEPS
    _combine(
        begin, m, rows, y_ptr, stride_y, bias_ptr, part_ptr, count_ptr,
        N, STEPS, TOTAL, PROGRAMS, BLOCK_M, BLOCK_N, BIAS,
    )  # fmt: skip
    if end > begin:
        _combine(
            end, m, rows, y_ptr, stride_y, bias_ptr, part_ptr, count_ptr,
            N, STEPS, TOTAL, PROGRAMS, BLOCK_M, BLOCK_N, BIAS,
        )  # fmt: skip
