# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `one_shot_all_reduce`: each rank reads all parts from its peers' memory and adds them itself."""

import triton
import triton.language as tl


@triton.jit
def one_shot_all_reduce_kernel(
    x_ptr,  # [n], this rank's part
    out_ptr,  # [n], the sum; may be x_ptr
    buffers_ptr,  # int64 [SIZE], the address of each rank's buffer [2, PROGRAMS, CHUNK] of x's type
    signals_ptr,  # int64 [SIZE], the address of each rank's signals int32 [PROGRAMS, LANES]
    epochs_ptr,  # int32 [PROGRAMS], this rank's own: calls that each program has taken part in
    n,
    rank,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = x of rank 0 + x of rank 1 + … in fp32, rounded once.

    Program p of every rank handles the same elements, and only these programs wait for each other: p writes its part
    to its rank's buffer, signals all peers, waits for all their signals, and reads. Two halves of the buffer take
    turns: a rank writes a half again two calls later, for which it needs every peer's signal of the call between, and
    a peer gives that only after its kernel before, with all its reads, has ended. Signals are counts that only grow
    (and may wrap). This is the one-shot algorithm of TensorRT-LLM and vLLM, with flags a block.
    """
    program = tl.program_id(0)
    epoch = tl.load(epochs_ptr + program) + 1
    region = ((epoch & 1) * PROGRAMS + program) * CHUNK
    share = tl.cdiv(tl.cdiv(n, tl.num_programs(0)), BLOCK) * BLOCK
    first = program * share
    cols = tl.arange(0, BLOCK)
    element = x_ptr.dtype.element_ty

    mine = tl.multiple_of(tl.load(buffers_ptr + rank).to(tl.pointer_type(element)), 16)
    for at in range(0, share, BLOCK):
        live = first + at + cols < n
        part = tl.load(x_ptr + first + at + cols, mask=live, other=0.0)
        tl.store(mine + region + at + cols, part, mask=live)

    tl.debug_barrier()  # all threads' stores come before the one thread's release
    peers = tl.arange(0, LANES)
    there = peers < SIZE
    theirs = tl.load(signals_ptr + peers, mask=there, other=0).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(theirs + program * LANES + rank, epoch, mask=there, sem="release", scope="sys")
    own = tl.load(signals_ptr + rank).to(tl.pointer_type(tl.int32)) + program * LANES + peers
    behind = tl.min(tl.where(there, tl.atomic_add(own, 0, mask=there, sem="acquire", scope="sys") - epoch, 0))
    while behind < 0:
        behind = tl.min(tl.where(there, tl.atomic_add(own, 0, mask=there, sem="acquire", scope="sys") - epoch, 0))
    tl.debug_barrier()

    for at in range(0, share, BLOCK):
        live = first + at + cols < n
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for peer in tl.static_range(SIZE):
            source = tl.multiple_of(tl.load(buffers_ptr + peer).to(tl.pointer_type(element)), 16)
            part = tl.load(source + region + at + cols, mask=live, other=0.0, cache_modifier=".cg")
            total += part.to(tl.float32)
        tl.store(out_ptr + first + at + cols, total.to(element), mask=live)
    tl.store(epochs_ptr + program, epoch)
