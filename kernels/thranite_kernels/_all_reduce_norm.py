# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `two_shot_all_reduce_norm`: as `_all_reduce.py`'s two shots, whole rows a program and a rank.

Between the shots each rank has the sums of its own rows, so it adds and normalises these alone, and the second shot
carries normalised rows. Buffers, halves and signals are those of the two-shot sum.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._peer import meet


@triton.jit
def _copy(source, target, count, COPY: tl.constexpr):
    """`count` elements; what peers wrote is not looked for in this SM's own cache."""
    cols = tl.arange(0, COPY)
    for at in range(0, count, COPY):
        live = at + cols < count
        tl.store(target + at + cols, tl.load(source + at + cols, mask=live, other=0.0, cache_modifier=".cg"), mask=live)


@triton.jit(do_not_specialize=["rows", "share", "eps"])
def two_shot_all_reduce_norm_kernel(
    x_ptr,  # [rows, N], this rank's part
    residual_ptr,  # [rows, N], updated in place in the rows that this rank adds
    weight_ptr,  # [N]
    out_ptr,  # [rows, N]; may be x_ptr
    buffers_ptr,  # int64 [SIZE], the address of each rank's buffer [2, PROGRAMS, CHUNK] of x's type
    signals_ptr,  # int64 [SIZE], the address of each rank's signals int32 [PROGRAMS, LANES]
    stop_ptr,  # int64 [2], as `_peer.stopped` reads it
    epochs_ptr,  # int32 [PROGRAMS], this rank's own: signals that each program has given
    rows,
    share,  # rows that one rank adds for one program
    eps,
    N: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,  # at once
    BLOCK: tl.constexpr,
    COPY: tl.constexpr,
    PDL: tl.constexpr,
):
    """s = x of rank 0 + x of rank 1 + …, rounded; h = s + residual, rounded and written back; out = h / rms(h) · w.

    The roundings are those of the sum and of `rms_norm` one after another.
    """
    program = tl.program_id(0)
    lines, cols = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    element = x_ptr.dtype.element_ty
    mine = tl.multiple_of(tl.load(buffers_ptr + RANK).to(tl.pointer_type(element)), 16)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    epoch = tl.load(epochs_ptr + program) + 2
    region = (((epoch >> 1) & 1) * PROGRAMS + program).to(tl.int64) * CHUNK
    first = program.to(tl.int64) * share * SIZE

    for step in tl.static_range(1, SIZE):
        skipped = (RANK + step) % SIZE * share
        count = tl.minimum(tl.maximum(rows - first - skipped, 0), share).to(tl.int32) * N
        _copy(x_ptr + (first + skipped) * N, mine + region + skipped * N, count, COPY)
    meet(signals_ptr, stop_ptr, program, epoch - 1, RANK, SIZE, LANES)

    own = RANK * share
    count = tl.minimum(tl.maximum(rows - first - own, 0), share).to(tl.int32)
    for line in range(0, count, ROWS):
        live = (line + lines < count)[:, None] & (cols < N)[None, :]
        within = (line + lines)[:, None] * N + cols[None, :]
        at = (first + own) * N + within
        there = region + own * N + within
        before = tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
        total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for peer in tl.static_range(SIZE):
            if peer == RANK:
                part = tl.load(x_ptr + at, mask=live, other=0.0)
            else:
                source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
                part = tl.load(source + there, mask=live, other=0.0, cache_modifier=".cg")
            total += part.to(tl.float32)
        stream = (total.to(element).to(tl.float32) + before).to(element)
        tl.store(residual_ptr + at, stream, mask=live)
        h = stream.to(tl.float32)
        scale = tl.rsqrt(tl.sum(h * h, axis=1) / N + eps)
        normed = (h * scale[:, None] * weight[None, :]).to(element)
        tl.store(mine + there, normed, mask=live)
        tl.store(out_ptr + at, normed, mask=live)
    meet(signals_ptr, stop_ptr, program, epoch, RANK, SIZE, LANES)

    for step in tl.static_range(1, SIZE):
        peer = (RANK + step) % SIZE
        skipped = peer * share
        count = tl.minimum(tl.maximum(rows - first - skipped, 0), share).to(tl.int32) * N
        source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
        _copy(source + region + skipped * N, out_ptr + (first + skipped) * N, count, COPY)
    tl.store(epochs_ptr + program, epoch)
