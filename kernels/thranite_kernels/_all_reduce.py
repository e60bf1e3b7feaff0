# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `one_shot_all_reduce` and `two_shot_all_reduce`: ranks read their peers' memory and add in rank order.

Program p of every rank handles the same elements, and only these programs wait for each other. Two halves of a rank's
buffer take turns: a rank writes a half again two calls later, for which it has seen every peer's signals of the call
between, and a peer gives those only after its kernel before, with all its reads, has ended. That holds for each program
by itself, whatever sizes and kernels follow each other, since a program's count and its region depend on nothing else.
Signals are counts that only grow (and may wrap); a call takes two of them.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._peer import meet


@triton.jit
def one_shot_all_reduce_kernel(
    x_ptr,  # [n], this rank's part
    out_ptr,  # [n], the sum; may be x_ptr
    buffers_ptr,  # int64 [SIZE], the address of each rank's buffer [2, PROGRAMS, CHUNK] of x's type
    signals_ptr,  # int64 [SIZE], the address of each rank's signals int32 [PROGRAMS, LANES]
    stop_ptr,  # int64 [2], as `_peer.stopped` reads it
    epochs_ptr,  # int32 [PROGRAMS], this rank's own: signals that each program has given
    n,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = x of rank 0 + x of rank 1 + … in fp32, rounded once: every rank reads all parts."""
    program = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    epoch = tl.load(epochs_ptr + program) + 2
    region = (((epoch >> 1) & 1) * PROGRAMS + program) * CHUNK
    share = tl.cdiv(tl.cdiv(n, tl.num_programs(0)), BLOCK) * BLOCK
    first = program * share
    cols = tl.arange(0, BLOCK)
    element = x_ptr.dtype.element_ty

    mine = tl.multiple_of(tl.load(buffers_ptr + RANK).to(tl.pointer_type(element)), 16)
    for at in range(0, share, BLOCK):
        live = first + at + cols < n
        part = tl.load(x_ptr + first + at + cols, mask=live, other=0.0)
        tl.store(mine + region + at + cols, part, mask=live)
    meet(signals_ptr, stop_ptr, program, epoch, RANK, SIZE, LANES)
    for at in range(0, share, BLOCK):
        live = first + at + cols < n
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for peer in tl.static_range(SIZE):
            source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
            part = tl.load(source + region + at + cols, mask=live, other=0.0, cache_modifier=".cg")
            total += part.to(tl.float32)
        tl.store(out_ptr + first + at + cols, total.to(element), mask=live)
    tl.store(epochs_ptr + program, epoch)


@triton.jit
def two_shot_all_reduce_kernel(
    x_ptr,  # [n], this rank's part
    out_ptr,  # [n], the sum; may be x_ptr
    buffers_ptr,  # as above
    signals_ptr,
    stop_ptr,
    epochs_ptr,
    n,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The same sum: each rank adds one part of a program's share (reduce-scatter), then reads the others' sums
    (all-gather). Over the links go 2 · (SIZE - 1) / SIZE · n elements a rank instead of (SIZE - 1) · n."""
    program = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    epoch = tl.load(epochs_ptr + program) + 2
    region = (((epoch >> 1) & 1) * PROGRAMS + program) * CHUNK
    slice_ = tl.cdiv(tl.cdiv(n, tl.num_programs(0)), SIZE * BLOCK) * BLOCK  # of a share, for one rank to add
    first = program * slice_ * SIZE
    cols = tl.arange(0, BLOCK)
    element = x_ptr.dtype.element_ty

    mine = tl.multiple_of(tl.load(buffers_ptr + RANK).to(tl.pointer_type(element)), 16)
    for step in tl.static_range(1, SIZE):
        theirs = (RANK + step) % SIZE * slice_
        for at in range(0, slice_, BLOCK):
            live = first + theirs + at + cols < n
            part = tl.load(x_ptr + first + theirs + at + cols, mask=live, other=0.0)
            tl.store(mine + region + theirs + at + cols, part, mask=live)
    meet(signals_ptr, stop_ptr, program, epoch - 1, RANK, SIZE, LANES)
    own = RANK * slice_
    for at in range(0, slice_, BLOCK):
        live = first + own + at + cols < n
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for peer in tl.static_range(SIZE):
            if peer == RANK:
                part = tl.load(x_ptr + first + own + at + cols, mask=live, other=0.0)
            else:
                source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
                part = tl.load(source + region + own + at + cols, mask=live, other=0.0, cache_modifier=".cg")
            total += part.to(tl.float32)
        tl.store(mine + region + own + at + cols, total.to(element), mask=live)
        tl.store(out_ptr + first + own + at + cols, total.to(element), mask=live)
    meet(signals_ptr, stop_ptr, program, epoch, RANK, SIZE, LANES)
    for step in tl.static_range(1, SIZE):
        peer = (RANK + step) % SIZE
        source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
        for at in range(0, slice_, BLOCK):
            live = first + peer * slice_ + at + cols < n
            part = tl.load(source + region + peer * slice_ + at + cols, mask=live, other=0.0, cache_modifier=".cg")
            tl.store(out_ptr + first + peer * slice_ + at + cols, part, mask=live)
    tl.store(epochs_ptr + program, epoch)
