# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `shaping`: one program a chunk of a row."""

import triton
import triton.language as tl


@triton.jit
def table_row(row_ptr, table_ptr, slot, stride, vocab):
    """(address of the slot's row, vocabulary to read of it: 0 where the slot has none)."""
    row = tl.load(row_ptr + slot)
    return table_ptr + tl.maximum(row, 0).to(tl.int64) * stride, tl.where(row >= 0, vocab, 0)


@triton.jit
def has_bit(words_row, v, vocab, OTHER: tl.constexpr):
    """Whether bit v % 32 of word v / 32 is set; `OTHER`, 0 or -1, stands for words past `vocab`."""
    word = tl.load(words_row + v // 32, mask=v < vocab, other=OTHER)
    return ((word >> (v % 32)) & 1) != 0


@triton.jit
def allowed_logits(
    logits_row, v, vocab, slot, row, bias_row_ptr, bias_ptr, stride_bias, mask_index_ptr, mask_ptr, stride_mask
):  # fmt: skip
    """fp32 logits of token ids `v` with biases and the bitmask; -inf outside the vocabulary."""
    x = tl.load(logits_row + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    bias_row, biased = table_row(bias_row_ptr, bias_ptr, slot, stride_bias, vocab)
    if biased > 0:
        x += tl.load(bias_row + v, mask=v < biased, other=0.0)
    mask_row, masked = table_row(mask_index_ptr, mask_ptr, row, stride_mask, vocab)
    if masked > 0:
        x = tl.where(has_bit(mask_row, v, masked, -1), x, float("-inf"))
    return x


@triton.jit(
    do_not_specialize=["chunks"],
    do_not_specialize_on_alignment=["slots_ptr", "position_ptr", "mask_index_ptr"],
)
def alive_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R], -1: padded
    position_ptr,  # int32 [R], position of the token that is sampled
    bias_row_ptr,  # int32 [max_slots], row of the table, -1: none; as stop_row_ptr
    bias_ptr,
    stride_bias,  # fp32 [*, V]
    mask_index_ptr,  # int32 [R], row of the masks, -1: none
    mask_ptr,
    stride_mask,  # int32 [*, ceil(V / 32)], bits of allowed tokens
    stop_row_ptr,
    stop_ptr,
    stride_stop,  # int32 [*, ceil(V / 32)], bits of tokens banned before `min_position`
    min_position_ptr,  # int32 [max_slots]
    alive_ptr,  # out int32 [R, chunks]
    vocab,
    chunks,
    BLOCK: tl.constexpr,
):
    """Whether a chunk has a token left without the banned ones."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    if tl.load(position_ptr + row) >= tl.load(min_position_ptr + slot):
        return
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    x = allowed_logits(
        logits_ptr + row.to(tl.int64) * stride_x, v, vocab, slot, row, bias_row_ptr, bias_ptr, stride_bias,
        mask_index_ptr, mask_ptr, stride_mask,
    )  # fmt: skip
    stop_row, stops = table_row(stop_row_ptr, stop_ptr, slot, stride_stop, vocab)
    left = (x != float("-inf")) & (v < vocab) & (has_bit(stop_row, v, stops, 0) == 0)
    tl.store(alive_ptr + row * chunks + chunk, tl.max(left.to(tl.int32), axis=0))


@triton.jit(
    do_not_specialize=["chunks"],
    do_not_specialize_on_alignment=["slots_ptr", "position_ptr", "mask_index_ptr"],
)
def shape_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R], -1: padded
    position_ptr,  # int32 [R], position of the token that is sampled
    bias_row_ptr,  # int32 [max_slots], row of the table, -1: none; as the next two
    bias_ptr,
    stride_bias,  # fp32 [*, V]
    count_row_ptr,
    count_ptr,
    stride_count,  # int32 [*, V], 2 * (times generated) + (1 if in the prompt)
    stop_row_ptr,
    stop_ptr,
    stride_stop,  # int32 [*, ceil(V / 32)], bits of tokens banned before `min_position`
    min_position_ptr,  # int32 [max_slots]
    repetition_ptr,  # fp32 [max_slots], as the next two
    presence_ptr,
    frequency_ptr,
    mask_index_ptr,  # int32 [R], row of the masks, -1: none
    mask_ptr,
    stride_mask,  # int32 [*, ceil(V / 32)], bits of allowed tokens
    alive_ptr,  # int32 [R, chunks], read in rows with banned tokens
    out_ptr,
    stride_out,  # fp32 [R, V]
    vocab,
    chunks,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Biases, bitmask, bans, then penalties: rounded operation by operation, as torch does in fp32."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64)
    x = allowed_logits(
        logits_ptr + at * stride_x, v, vocab, slot, row, bias_row_ptr, bias_ptr, stride_bias,
        mask_index_ptr, mask_ptr, stride_mask,
    )  # fmt: skip
    stop_row, stops = table_row(stop_row_ptr, stop_ptr, slot, stride_stop, vocab)
    if (stops > 0) & (tl.load(position_ptr + row) < tl.load(min_position_ptr + slot)):
        c = tl.arange(0, CHUNKS)
        alive = tl.max(tl.load(alive_ptr + row * chunks + c, mask=c < chunks, other=0), axis=0)
        banned = has_bit(stop_row, v, stops * alive, 0)
        x = tl.where(banned, float("-inf"), x)
    count_row, counted = table_row(count_row_ptr, count_ptr, slot, stride_count, vocab)
    if counted > 0:
        repetition = tl.load(repetition_ptr + slot)
        entry = tl.load(count_row + v, mask=v < counted, other=0)
        scaled = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition)
        x = tl.where(entry > 0, scaled, x)
        generated = entry >> 1
        x -= generated.to(tl.float32) * tl.load(frequency_ptr + slot)
        x -= tl.where(generated > 0, tl.load(presence_ptr + slot), 0.0)
    tl.store(out_ptr + at * stride_out + v, x, mask=v < vocab)
