# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `logprobs`: one program a chunk, then one a row."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["chunks", "top"], do_not_specialize_on_alignment=["wanted_ptr", "token_ptr"])
def logprob_chunk_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    token_ptr,  # int32 [R], the chosen tokens
    wanted_ptr,  # int32 [R], top entries a row wants, -1: nothing; or None: all want `top`
    max_ptr,  # out fp32 [R, chunks]
    sum_ptr,  # out fp32 [R, chunks]
    above_ptr,  # out int32 [R, chunks], entries before the chosen one: larger, or as large with a lower id
    value_ptr,  # out fp32 [R, chunks, TOP]
    id_ptr,  # out int32 [R, chunks, TOP]
    vocab,
    chunks,
    top,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    SELECT: tl.constexpr,
):
    """Maximum, sum of exponentials, and the largest entries of one chunk in order (ties by id)."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    wanted = top
    if SELECT:
        wanted = tl.minimum(tl.load(wanted_ptr + row), top)
        if wanted < 0:
            return
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    logits_row = logits_ptr + row * stride_x
    x = tl.load(logits_row + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))  # of NaNs an arg-max takes whichever it meets last, maybe an id outside
    token = tl.load(token_ptr + row)
    chosen = tl.load(logits_row + token).to(tl.float32)
    peak = tl.max(x, axis=0)
    base = tl.where(peak > float("-inf"), peak, 0.0)
    at = row * chunks + chunk
    tl.store(max_ptr + at, base)
    tl.store(sum_ptr + at, tl.sum(tl.exp(x - base), axis=0))
    before = (x > chosen) | ((x == chosen) & (v < token))
    tl.store(above_ptr + at, tl.sum(before.to(tl.int32), axis=0))
    local = tl.arange(0, BLOCK)
    for i in range(wanted):
        value, index = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(value_ptr + at * TOP + i, value)
        tl.store(id_ptr + at * TOP + i, chunk * BLOCK + index)
        x = tl.where(local == index, float("-inf"), x)


@triton.jit(do_not_specialize=["chunks", "top"], do_not_specialize_on_alignment=["wanted_ptr", "token_ptr"])
def logprob_row_kernel(
    logits_ptr,
    stride_x,
    token_ptr,
    wanted_ptr,
    max_ptr,
    sum_ptr,
    above_ptr,
    value_ptr,
    id_ptr,
    chosen_ptr,  # out fp32 [R]
    rank_ptr,  # out int32 [R], 1: the most likely
    top_value_ptr,  # out fp32 [R, TOP]
    top_id_ptr,  # out int32 [R, TOP]
    chunks,
    top,
    TOP: tl.constexpr,
    CHUNKS: tl.constexpr,
    SELECT: tl.constexpr,
):
    """log p = x - log(sum exp x) of the chosen token and of the `wanted` largest ones."""
    row = tl.program_id(0).to(tl.int64)
    wanted = top
    if SELECT:
        wanted = tl.minimum(tl.load(wanted_ptr + row), top)
        if wanted < 0:
            return
    c = tl.arange(0, CHUNKS)
    live = c < chunks
    peaks = tl.load(max_ptr + row * chunks + c, mask=live, other=float("-inf"))
    sums = tl.load(sum_ptr + row * chunks + c, mask=live, other=0.0)
    peak = tl.max(peaks, axis=0)
    norm = peak + tl.log(tl.sum(sums * tl.exp(peaks - peak), axis=0))
    chosen = tl.load(logits_ptr + row * stride_x + tl.load(token_ptr + row)).to(tl.float32)
    tl.store(chosen_ptr + row, chosen - norm)
    tl.store(rank_ptr + row, 1 + tl.sum(tl.load(above_ptr + row * chunks + c, mask=live, other=0), axis=0))
    # Candidates in order of chunk, then rank: equal values stand in order of their ids.
    e = tl.arange(0, CHUNKS * TOP)
    inside = (e // TOP < chunks) & (e % TOP < wanted)
    values = tl.load(value_ptr + row * chunks * TOP + e, mask=inside, other=float("-inf"))
    ids = id_ptr + row * chunks * TOP
    for i in range(wanted):
        value, index = tl.max(values, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(top_value_ptr + row * TOP + i, value - norm)
        tl.store(top_id_ptr + row * TOP + i, tl.load(ids + index))
        values = tl.where(e == index, float("-inf"), values)
