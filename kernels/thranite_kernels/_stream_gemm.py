# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `stream_gemm`: yᵀ = W xᵀ for few rows of x, by programs that walk equal shares of W."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _owner(step, TOTAL: tl.constexpr, PROGRAMS: tl.constexpr):
    """The program whose share [p TOTAL // PROGRAMS, (p + 1) TOTAL // PROGRAMS) holds `step`."""
    return ((step + 1) * PROGRAMS - 1) // TOTAL


@triton.jit
def _fetch_ahead(w_ptr, stride_w, n, k_first, K: tl.constexpr, COLUMNS: tl.constexpr):
    """Ask L2 for COLUMNS elements of rows `n` from column `k_first` on, or the last ones; 16-byte multiples."""
    start = tl.minimum(k_first, K - COLUMNS)
    at = (w_ptr + n.to(tl.int64) * stride_w + start).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [at, tl.full(n.shape, COLUMNS * 2, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


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
    PDL: tl.constexpr,
):
    """One program per share of the (block of BLOCK_N weights' rows, step of BLOCK_K columns) pairs, in row-major order.

    With PDL the program starts while the kernel before still runs, asks L2 for its first AHEAD columns, and waits.
    (Asked for by the kernel before, they come no sooner: it was seen to end only when what it asked for was there.)
    """
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    TOTAL: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N * STEPS
    program = tl.program_id(0)
    first = program * TOTAL // PROGRAMS
    last = (program + 1) * TOTAL // PROGRAMS
    if PDL:
        gdc_launch_dependents()
        row = first // STEPS * BLOCK_N + tl.arange(0, BLOCK_N)
        _fetch_ahead(w_ptr, stride_w, tl.minimum(row, N - 1), first % STEPS * BLOCK_K, K, AHEAD)
        gdc_wait()
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(first, last):
        block = step // STEPS
        start = step % STEPS * BLOCK_K
        w = w_desc.load([block * BLOCK_N, start])
        x = tl.load(
            x_ptr + m[:, None] * stride_x + start + k[None, :],
            mask=(m < rows)[:, None] & (start + k < K)[None, :],
            other=0.0,
        )
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
