# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `prepare_inputs`: one program per row, and one more for the tail."""

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["rows", "tokens"],
    do_not_specialize_on_alignment=["slots_ptr", "new_ptr", "id_start_ptr", "from_last_ptr", "ids_ptr"],
)
def prepare_inputs_kernel(
    slots_ptr,  # int32 [R], -1: padded row
    new_ptr,  # int32 [R], query tokens of the row in this step
    from_last_ptr,  # int32 [R], 1: the first id is last_token[slot]
    id_start_ptr,  # int32 [R], where the row's other ids start in ids
    ids_ptr,  # int32 [*], ids that the host sent, row after row
    last_token_ptr,  # int32 [max_slots]
    seq_len_ptr,  # int32 [max_slots], tokens whose keys and values are in the cache
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    input_ids_ptr,  # out int32 [T]
    positions_ptr,  # out int32 [T]
    slot_mapping_ptr,  # out int64 [T]
    cu_q_ptr,  # out int32 [R + 1]
    context_ptr,  # out int32 [R]
    last_index_ptr,  # out int64 [R]
    rows,
    tokens,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ADVANCE: tl.constexpr,
):
    """Row r's tokens stand at cu_q[r] = sum(new[:r]); token j has position seq_len + j. Padding points at page 0."""
    row = tl.program_id(0)
    begin = 0
    for start in range(0, row, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        begin += tl.sum(tl.load(new_ptr + r, mask=r < row, other=0))
    offs = tl.arange(0, BLOCK_T)
    if row == rows:
        tl.store(cu_q_ptr + rows, begin)
        for start in range(begin, tokens, BLOCK_T):
            t = start + offs
            tl.store(input_ids_ptr + t, 0, mask=t < tokens)
            tl.store(positions_ptr + t, 0, mask=t < tokens)
            tl.store(slot_mapping_ptr + t, (t % BLOCK_SIZE).to(tl.int64), mask=t < tokens)
    else:
        slot = tl.load(slots_ptr + row)
        new = tl.load(new_ptr + row)
        live = slot >= 0
        safe = tl.maximum(slot, 0)
        past = tl.where(live, tl.load(seq_len_ptr + safe), 0)
        context = tl.where(live, past + new, 0)
        tl.store(cu_q_ptr + row, begin)
        tl.store(context_ptr + row, context)
        tl.store(last_index_ptr + row, (begin + tl.maximum(new, 1) - 1).to(tl.int64))
        last = tl.load(last_token_ptr + safe)
        from_last = tl.load(from_last_ptr + row)
        source = tl.load(id_start_ptr + row) - from_last
        table_row = table_ptr + safe.to(tl.int64) * stride_table
        known = tl.where(live, new, 0)
        for start in range(0, new, BLOCK_T):
            j = start + offs
            inside = j < new
            given = tl.load(ids_ptr + source + j, mask=(j < known) & (j >= from_last), other=0)
            ids = tl.where(j < from_last, last, given)
            position = tl.where(live, past + j, 0)
            page = tl.load(table_row + position // BLOCK_SIZE, mask=j < known, other=0).to(tl.int64)
            offset = tl.where(live, position % BLOCK_SIZE, (begin + j) % BLOCK_SIZE)
            tl.store(input_ids_ptr + begin + j, tl.where(live, ids, 0), mask=inside)
            tl.store(positions_ptr + begin + j, position, mask=inside)
            tl.store(slot_mapping_ptr + begin + j, page * BLOCK_SIZE + offset, mask=inside)
        if ADVANCE:
            tl.store(seq_len_ptr + safe, context, mask=live)
