# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `sampler`: thresholds (one program a row), noise and arg-max (one a chunk), choice (one a row)."""

import triton
import triton.language as tl

from ._rng import gumbel, random_bits, row_key

INF: tl.constexpr = tl.constexpr(float("inf"))
GREEDY: tl.constexpr = tl.constexpr(1.0e-5)
"""Temperatures below this take the arg-max."""


@triton.jit
def shaped_logits(
    logits_row,
    v,
    vocab,
    penalty_vocab,
    mask_vocab,
    count_row,
    prompt_row,
    mask_row,
    repetition,
    presence,
    frequency,
    inverse_temperature,
    PENALTIES: tl.constexpr,
    BITMASK: tl.constexpr,
):
    """fp32 logits of token ids `v` after penalties, bitmask and temperature; -inf outside the vocabulary.

    `penalty_vocab` and `mask_vocab` are the vocabulary size for rows that have penalties or a mask, else 0.
    """
    x = tl.load(logits_row + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    if PENALTIES:
        count = tl.load(count_row + v, mask=v < penalty_vocab, other=0).to(tl.float32)
        word = tl.load(prompt_row + v // 32, mask=v < penalty_vocab, other=0)
        seen = (count > 0.0) | (((word >> (v % 32)) & 1) != 0)
        scaled = tl.where(x > 0.0, x / repetition, x * repetition)
        x = tl.where(seen, scaled, x) - frequency * count - tl.where(count > 0.0, presence, 0.0)
    if BITMASK:
        word = tl.load(mask_row + v // 32, mask=v < mask_vocab, other=-1)
        x = tl.where(((word >> (v % 32)) & 1) != 0, x, float("-inf"))
    return x * inverse_temperature


@triton.jit
def tile_threshold(x, weight, target):
    """Largest element t of `x` with sum(weight[x >= t]) >= target, by bisection between elements; -inf if none.

    Each step moves one end onto an element, so equal values end the search at once. -inf entries do not count.
    """
    live = x > float("-inf")
    weight = tl.where(live, weight, 0.0)
    found = tl.sum(weight, axis=0) >= target
    high = tl.max(x, axis=0)
    low = tl.where(found, tl.min(tl.where(live, x, INF), axis=0), high)
    while low < high:
        middle = 0.5 * low + 0.5 * high
        pivot = tl.where(middle > low, middle, high)
        enough = tl.sum(tl.where(x >= pivot, weight, 0.0), axis=0) >= target
        above = tl.min(tl.where(x >= pivot, x, INF), axis=0)
        below = tl.max(tl.where(x < pivot, x, float("-inf")), axis=0)
        low = tl.where(enough, above, low)
        high = tl.where(enough, high, below)
    return tl.where(found, low, float("-inf"))


@triton.jit
def row_mass(
    logits_row, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row, repetition, presence, frequency,
    inverse_temperature, floor, peak, BLOCK: tl.constexpr, PENALTIES: tl.constexpr, BITMASK: tl.constexpr,
):  # fmt: skip
    """Sum of exp(x - peak) over the row's elements of at least `floor`."""
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        x = shaped_logits(
            logits_row, start + tl.arange(0, BLOCK), vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row,
            repetition, presence, frequency, inverse_temperature, PENALTIES, BITMASK,
        )  # fmt: skip
        acc += tl.where(x >= floor, tl.exp(x - peak), 0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def row_threshold(
    logits_row, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row, repetition, presence, frequency,
    inverse_temperature, floor, low, high, target, peak,
    MASS: tl.constexpr, BLOCK: tl.constexpr, PENALTIES: tl.constexpr, BITMASK: tl.constexpr,
):  # fmt: skip
    """As `tile_threshold` over the whole row in memory: one pass a step. Weights are 1, or exp(x - peak) with MASS.

    For rows whose candidates do not fit one tile (nearly flat distributions). `low` is finite and known to satisfy.
    """
    while low < high:
        middle = 0.5 * low + 0.5 * high
        pivot = tl.where(middle > low, middle, high)
        acc = tl.zeros([BLOCK], tl.float32)
        above = tl.full([BLOCK], INF, tl.float32)
        below = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            x = shaped_logits(
                logits_row, start + tl.arange(0, BLOCK), vocab, penalty_vocab, mask_vocab, count_row, prompt_row,
                mask_row, repetition, presence, frequency, inverse_temperature, PENALTIES, BITMASK,
            )  # fmt: skip
            x = tl.where(x >= floor, x, float("-inf"))
            if MASS:
                weight = tl.exp(x - peak)
            else:
                weight = tl.full([BLOCK], 1.0, tl.float32)
            acc += tl.where(x >= pivot, weight, 0.0)
            above = tl.minimum(above, tl.where(x >= pivot, x, INF))
            below = tl.maximum(below, tl.where(x < pivot, x, float("-inf")))
        enough = tl.sum(acc, axis=0) >= target
        low = tl.where(enough, tl.min(above, axis=0), low)
        high = tl.where(enough, high, tl.max(below, axis=0))
    return low


@triton.jit(
    do_not_specialize=["vocab", "stride_mask"],
    do_not_specialize_on_alignment=["slots_ptr", "mask_index_ptr"],
)
def threshold_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R], -1: padded
    temperature_ptr,  # fp32 [max_slots], as the next six
    top_k_ptr,  # int32; 0: off
    top_p_ptr,
    min_p_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    count_ptr,
    stride_count,  # [max_slots, V] integer, times a token was generated; or None
    prompt_ptr,
    stride_prompt,  # int32 [max_slots, ceil(V / 32)], bits of tokens in the prompt; or None
    mask_ptr,
    stride_mask,  # int32 [*, ceil(V / 32)], bits of allowed tokens; or None
    mask_index_ptr,  # int32 [R], row of the mask, -1: none; or None
    scratch_ptr,  # fp32 [R, BLOCK]
    threshold_ptr,  # out fp32 [R]
    vocab,
    BLOCK: tl.constexpr,
    PENALTIES: tl.constexpr,
    BITMASK: tl.constexpr,
):
    """Lowest shaped logit that min-p, top-k and top-p (in this order, each on what the one before left) keep.

    Two passes over the row find the candidates: maxima of BLOCK interleaved groups give a lower bound of the k-th
    largest value (and of what top-p can need), everything above it is gathered into one tile, and the exact thresholds
    are searched there. Ties at a threshold are all kept.
    """
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row)
    safe = tl.maximum(slot, 0).to(tl.int64)
    temperature = tl.load(temperature_ptr + safe)
    top_k = tl.load(top_k_ptr + safe)
    top_p = tl.load(top_p_ptr + safe)
    min_p = tl.load(min_p_ptr + safe)
    by_count = (top_k > 0) & (top_k < vocab)
    by_mass = top_p < 1.0
    threshold = float("-inf") + 0.0 * top_p
    active = (slot >= 0) & (temperature >= GREEDY) & (by_count | by_mass | (min_p > 0.0))
    if active:
        inverse_temperature = 1.0 / temperature
        logits_row = logits_ptr + row.to(tl.int64) * stride_x
        repetition = 1.0
        presence = 0.0
        frequency = 0.0
        count_row = count_ptr
        prompt_row = prompt_ptr
        mask_row = mask_ptr
        penalty_vocab = 0
        mask_vocab = 0
        if PENALTIES:
            repetition = tl.load(repetition_ptr + safe)
            presence = tl.load(presence_ptr + safe)
            frequency = tl.load(frequency_ptr + safe)
            count_row = count_ptr + safe * stride_count
            prompt_row = prompt_ptr + safe * stride_prompt
            penalty_vocab = tl.where((repetition != 1.0) | (presence != 0.0) | (frequency != 0.0), vocab, 0)
        if BITMASK:
            index = tl.load(mask_index_ptr + row)
            mask_row = mask_ptr + tl.maximum(index, 0).to(tl.int64) * stride_mask
            mask_vocab = tl.where(index >= 0, vocab, 0)

        offs = tl.arange(0, BLOCK)
        group_max = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            x = shaped_logits(
                logits_row, start + offs, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row,
                repetition, presence, frequency, inverse_temperature, PENALTIES, BITMASK,
            )  # fmt: skip
            group_max = tl.maximum(group_max, x)
        peak = tl.max(group_max, axis=0)
        floor = tl.where(min_p > 0.0, peak + tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))
        bound = floor
        if by_count:
            ones = tl.full([BLOCK], 1.0, tl.float32)
            bound = tl.maximum(bound, tile_threshold(group_max, ones, top_k.to(tl.float32)))
        elif by_mass & (min_p <= 0.0):
            # All tokens below the bound together weigh less than (1 - p) of a lower bound of the total.
            mass = tl.sum(tl.exp(group_max - peak), axis=0)
            bound = peak + tl.log(tl.maximum((1.0 - top_p) * 0.99 * mass / vocab, 1e-30))

        scratch = scratch_ptr + row.to(tl.int64) * BLOCK
        found = 0
        lowest = tl.full([BLOCK], INF, tl.float32)
        weights = tl.zeros([BLOCK], tl.float32)
        for start in range(0, vocab, BLOCK):
            x = shaped_logits(
                logits_row, start + offs, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row,
                repetition, presence, frequency, inverse_temperature, PENALTIES, BITMASK,
            )  # fmt: skip
            kept = (x >= bound) & (x > float("-inf"))
            if by_mass:
                weights += tl.exp(x - peak)
            lowest = tl.minimum(lowest, tl.where(kept, x, INF))
            here = tl.sum(kept.to(tl.int32), axis=0)
            if here > 0:
                at = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                tl.store(scratch + at, x, mask=kept & (at < BLOCK))
            found += here

        threshold = floor
        if found <= BLOCK:
            # Values stored by other threads of this program are read next.
            tl.debug_barrier()
            x = tl.load(scratch + offs, mask=offs < found, other=float("-inf"))
            if by_count:
                ones = tl.full([BLOCK], 1.0, tl.float32)
                threshold = tl.maximum(threshold, tile_threshold(x, ones, top_k.to(tl.float32)))
            if by_mass:
                x = tl.where(x >= threshold, x, float("-inf"))
                weight = tl.exp(x - peak)
                # With top-p alone, what the bound left out of the candidates still counts towards the whole.
                whole = tl.where(by_count | (min_p > 0.0), tl.sum(weight, axis=0), tl.sum(weights, axis=0))
                target = top_p * whole
                threshold = tl.maximum(threshold, tile_threshold(x, weight, target))
        else:
            low = tl.min(lowest, axis=0)
            if by_count:
                value = row_threshold(
                    logits_row, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row, repetition,
                    presence, frequency, inverse_temperature, float("-inf"), low, peak, top_k.to(tl.float32), peak,
                    False, BLOCK, PENALTIES, BITMASK,
                )  # fmt: skip
                threshold = tl.maximum(threshold, value)
            if by_mass:
                mass = row_mass(
                    logits_row, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row, repetition,
                    presence, frequency, inverse_temperature, threshold, peak, BLOCK, PENALTIES, BITMASK,
                )  # fmt: skip
                value = row_threshold(
                    logits_row, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row, repetition,
                    presence, frequency, inverse_temperature, threshold, tl.maximum(low, threshold), peak,
                    top_p * mass, peak, True, BLOCK, PENALTIES, BITMASK,
                )  # fmt: skip
                threshold = tl.maximum(threshold, value)
    tl.store(threshold_ptr + row, threshold)


@triton.jit(
    do_not_specialize=["vocab", "chunks", "stride_mask"],
    do_not_specialize_on_alignment=["slots_ptr", "mask_index_ptr", "position_ptr"],
)
def chunk_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R]
    temperature_ptr,  # fp32 [max_slots], as the next three
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    seed_ptr,  # int64 [max_slots]
    index_ptr,  # int32 [max_slots], which of a request's samples
    position_ptr,  # int32 [R], position of the token that is sampled
    count_ptr,
    stride_count,
    prompt_ptr,
    stride_prompt,
    mask_ptr,
    stride_mask,
    mask_index_ptr,
    threshold_ptr,  # fp32 [R] or None
    value_ptr,  # out fp32 [R, chunks]
    token_ptr,  # out int32 [R, chunks]
    vocab,
    chunks,
    BLOCK: tl.constexpr,
    PENALTIES: tl.constexpr,
    BITMASK: tl.constexpr,
    FILTERS: tl.constexpr,
):
    """Best (shaped logit + Gumbel noise) of one chunk; greedy rows add no noise. Ties go to the smallest id."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    safe = slot.to(tl.int64)
    temperature = tl.load(temperature_ptr + safe)
    greedy = temperature < GREEDY
    inverse_temperature = tl.where(greedy, 1.0, 1.0 / tl.maximum(temperature, GREEDY))
    repetition = 1.0
    presence = 0.0
    frequency = 0.0
    count_row = count_ptr
    prompt_row = prompt_ptr
    mask_row = mask_ptr
    penalty_vocab = 0
    mask_vocab = 0
    if PENALTIES:
        repetition = tl.load(repetition_ptr + safe)
        presence = tl.load(presence_ptr + safe)
        frequency = tl.load(frequency_ptr + safe)
        count_row = count_ptr + safe * stride_count
        prompt_row = prompt_ptr + safe * stride_prompt
        penalty_vocab = tl.where((repetition != 1.0) | (presence != 0.0) | (frequency != 0.0), vocab, 0)
    if BITMASK:
        index = tl.load(mask_index_ptr + row)
        mask_row = mask_ptr + tl.maximum(index, 0).to(tl.int64) * stride_mask
        mask_vocab = tl.where(index >= 0, vocab, 0)
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    x = shaped_logits(
        logits_ptr + row.to(tl.int64) * stride_x, v, vocab, penalty_vocab, mask_vocab, count_row, prompt_row, mask_row,
        repetition, presence, frequency, inverse_temperature, PENALTIES, BITMASK,
    )  # fmt: skip
    if not greedy:
        if FILTERS:
            x = tl.where(x >= tl.load(threshold_ptr + row), x, float("-inf"))
        key = row_key(tl.load(seed_ptr + safe), tl.load(index_ptr + safe), tl.load(position_ptr + row))
        x += gumbel(random_bits(key, v))
    value, at = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(value_ptr + row * chunks + chunk, value)
    tl.store(token_ptr + row * chunks + chunk, chunk * BLOCK + at)


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["slots_ptr", "token_ptr"])
def choose_kernel(
    slots_ptr,  # int32 [R]
    value_ptr,  # fp32 [R, chunks]
    candidate_ptr,  # int32 [R, chunks]
    token_ptr,  # out int32 [R]
    last_token_ptr,  # out int32 [max_slots] or None
    count_ptr,
    stride_count,  # [max_slots, V] or None, times a token was generated
    chunks,
    CHUNKS: tl.constexpr,
    COMMIT: tl.constexpr,
    PENALTIES: tl.constexpr,
):
    """The row's token; written to its slot too, and counted where penalties need counts. Padded rows give 0."""
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        tl.store(token_ptr + row, 0)
        return
    c = tl.arange(0, CHUNKS)
    value = tl.load(value_ptr + row * chunks + c, mask=c < chunks, other=float("-inf"))
    _, at = tl.max(value, axis=0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(candidate_ptr + row * chunks + at)
    tl.store(token_ptr + row, token)
    if COMMIT:
        tl.store(last_token_ptr + slot, token)
    if PENALTIES:
        counter = count_ptr + slot.to(tl.int64) * stride_count + token
        tl.store(counter, tl.load(counter) + 1)
