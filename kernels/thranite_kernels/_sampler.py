# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `sampler`: peaks (one program a chunk), thresholds (one a row), weights of chunks (one a chunk),
draw (one a row)."""

import triton
import triton.language as tl

from ._rng import FIRST_CHUNK, gumbel, random_bits, row_key

INF: tl.constexpr = tl.constexpr(float("inf"))
GREEDY: tl.constexpr = tl.constexpr(1.0e-5)
"""Temperatures below this take the arg-max."""


@triton.jit
def scaled_logits(logits_row, v, vocab, inverse_temperature):
    """fp32 logits of token ids `v` over the temperature; -inf outside the vocabulary.

    NaN too: of NaNs an arg-max takes whichever it meets last, which may be an id outside.
    """
    x = tl.load(logits_row + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf")) * inverse_temperature


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
def row_mass(logits_row, vocab, inverse_temperature, floor, peak, BLOCK: tl.constexpr):
    """Sum of exp(x - peak) over the row's elements of at least `floor`."""
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        x = scaled_logits(logits_row, start + tl.arange(0, BLOCK), vocab, inverse_temperature)
        acc += tl.where(x >= floor, tl.exp(x - peak), 0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def row_threshold(
    logits_row, vocab, inverse_temperature, floor, low, high, target, peak, MASS: tl.constexpr, BLOCK: tl.constexpr
):
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
            x = scaled_logits(logits_row, start + tl.arange(0, BLOCK), vocab, inverse_temperature)
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


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["slots_ptr"])
def peak_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R], -1: padded
    peak_ptr,  # out fp32 [R, chunks, BLOCK / GROUP]
    vocab,
    chunks,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The largest logit of each GROUP neighbours."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    if tl.load(slots_ptr + row) < 0:
        return
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    x = scaled_logits(logits_ptr + row.to(tl.int64) * stride_x, v, vocab, 1.0)
    GROUPS: tl.constexpr = BLOCK // GROUP
    peaks = tl.max(tl.reshape(x, [GROUPS, GROUP]), axis=1)
    tl.store(peak_ptr + (row * chunks + chunk) * GROUPS + tl.arange(0, GROUPS), peaks)


@triton.jit
def tile_cut(x, floor, by_count, by_mass, top_k, top_p, whole, peak, BLOCK: tl.constexpr):
    """The lowest that top-k, then top-p keep of a tile's candidates, at least `floor`.

    `whole`: what top-p takes its share of, 0: what is left of the tile.
    """
    cut = floor
    if by_count:
        ones = tl.full([BLOCK], 1.0, tl.float32)
        cut = tl.maximum(cut, tile_threshold(x, ones, top_k.to(tl.float32)))
    if by_mass:
        x = tl.where(x >= cut, x, float("-inf"))
        weight = tl.exp(x - peak)
        target = top_p * tl.where(whole > 0.0, whole, tl.sum(weight, axis=0))
        cut = tl.maximum(cut, tile_threshold(x, weight, target))
    return cut


@triton.jit
def group_cut(
    logits_row, vocab, inverse_temperature, group_ptr, found, bound, floor, by_count, by_mass, top_k, top_p, peak,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`tile_cut` of the candidates (at least `bound`) in `found` groups of neighbours."""
    e = tl.arange(0, BLOCK)
    live = e // GROUP < found
    v = tl.load(group_ptr + e // GROUP, mask=live, other=0) * GROUP + e % GROUP
    x = scaled_logits(logits_row, tl.where(live, v, vocab), vocab, inverse_temperature)
    x = tl.where(x >= bound, x, float("-inf"))
    return tile_cut(x, floor, by_count, by_mass, top_k, top_p, 0.0, peak, BLOCK)


@triton.jit
def row_cut(
    logits_row, vocab, inverse_temperature, scratch, bound, floor, by_count, by_mass, by_floor, top_k, top_p, peak,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`tile_cut` of the candidates of a whole row, gathered in a tile; where they do not fit, searched in memory."""
    offs = tl.arange(0, BLOCK)
    found = 0
    lowest = tl.full([BLOCK], INF, tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        x = scaled_logits(logits_row, start + offs, vocab, inverse_temperature)
        kept = (x >= bound) & (x > float("-inf"))
        if by_mass:
            weights += tl.exp(x - peak)
        lowest = tl.minimum(lowest, tl.where(kept, x, INF))
        here = tl.sum(kept.to(tl.int32), axis=0)
        if here > 0:
            at = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
            tl.store(scratch + at, x, mask=kept & (at < BLOCK))
        found += here
    cut = floor
    if found <= BLOCK:
        # Values stored by other threads of this program are read next.
        tl.debug_barrier()
        x = tl.load(scratch + offs, mask=offs < found, other=float("-inf"))
        # With top-p alone, what the bound left out of the candidates still counts towards the whole.
        whole = tl.where(by_count | by_floor, 0.0, tl.sum(weights, axis=0))
        cut = tile_cut(x, floor, by_count, by_mass, top_k, top_p, whole, peak, BLOCK)
    else:
        low = tl.min(lowest, axis=0)
        if by_count:
            value = row_threshold(
                logits_row, vocab, inverse_temperature, float("-inf"), low, peak, top_k.to(tl.float32), peak, False,
                BLOCK,
            )  # fmt: skip
            cut = tl.maximum(cut, value)
        if by_mass:
            mass = row_mass(logits_row, vocab, inverse_temperature, cut, peak, BLOCK)
            value = row_threshold(
                logits_row, vocab, inverse_temperature, cut, tl.maximum(low, cut), peak, top_p * mass, peak, True, BLOCK
            )
            cut = tl.maximum(cut, value)
    return cut


@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["slots_ptr"])
def threshold_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R], -1: padded
    temperature_ptr,  # fp32 [max_slots], as the next three
    top_k_ptr,  # int32; 0: off
    top_p_ptr,
    min_p_ptr,
    peak_ptr,  # fp32 [R, groups], the largest logit of each GROUP neighbours
    group_ptr,  # scratch int32 [R, BLOCK / GROUP]
    scratch_ptr,  # scratch fp32 [R, BLOCK]
    threshold_ptr,  # out fp32 [R]
    vocab,
    groups,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Lowest scaled logit that min-p, top-k and top-p (in this order, each on what the one before left) keep.

    The groups' maxima give a lower bound of the k-th largest value (and of what top-p can need). What reaches it lies
    in the few groups whose maximum does: they are gathered into one tile, and the exact thresholds are searched there.
    With top-p alone, whose share is of the whole row, the row is read once more. Ties at a threshold are all kept.
    """
    MOST: tl.constexpr = BLOCK // GROUP
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row)
    safe = tl.maximum(slot, 0).to(tl.int64)
    temperature = tl.load(temperature_ptr + safe)
    top_k = tl.load(top_k_ptr + safe)
    top_p = tl.load(top_p_ptr + safe)
    min_p = tl.load(min_p_ptr + safe)
    by_count = (top_k > 0) & (top_k < vocab)
    by_mass = top_p < 1.0
    by_floor = min_p > 0.0
    threshold = float("-inf") + 0.0 * top_p
    active = (slot >= 0) & (temperature >= GREEDY) & (by_count | by_mass | by_floor)
    if active:
        inverse_temperature = 1.0 / temperature
        logits_row = logits_ptr + row.to(tl.int64) * stride_x
        g = tl.arange(0, GROUPS)
        peaks = tl.load(peak_ptr + row.to(tl.int64) * groups + g, mask=g < groups, other=float("-inf"))
        peaks *= inverse_temperature
        peak = tl.max(peaks, axis=0)
        floor = tl.where(by_floor, peak + tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))
        threshold = floor
        if by_count | by_mass:
            bound = floor
            if by_count:
                ones = tl.full([GROUPS], 1.0, tl.float32)
                bound = tl.maximum(bound, tile_threshold(peaks, ones, top_k.to(tl.float32)))
            elif by_floor == 0:
                # All tokens below the bound together weigh less than (1 - p) of a lower bound of the total.
                mass = tl.sum(tl.exp(peaks - peak), axis=0)
                bound = peak + tl.log(tl.maximum((1.0 - top_p) * 0.99 * mass / vocab, 1e-30))
            groups_row = group_ptr + row.to(tl.int64) * MOST
            kept = (peaks >= bound) & (peaks > float("-inf"))
            found = tl.sum(kept.to(tl.int32), axis=0)
            if (found <= MOST) & (by_count | by_floor):
                at = tl.cumsum(kept.to(tl.int32), axis=0) - 1
                tl.store(groups_row + at, g, mask=kept)
                # Numbers stored by other threads of this program are read next.
                tl.debug_barrier()
                if found <= NARROW // GROUP:
                    threshold = group_cut(
                        logits_row, vocab, inverse_temperature, groups_row, found, bound, floor, by_count, by_mass,
                        top_k, top_p, peak, NARROW, GROUP,
                    )  # fmt: skip
                else:
                    threshold = group_cut(
                        logits_row, vocab, inverse_temperature, groups_row, found, bound, floor, by_count, by_mass,
                        top_k, top_p, peak, BLOCK, GROUP,
                    )  # fmt: skip
            else:
                threshold = row_cut(
                    logits_row, vocab, inverse_temperature, scratch_ptr + row.to(tl.int64) * BLOCK, bound, floor,
                    by_count, by_mass, by_floor, top_k, top_p, peak, BLOCK,
                )  # fmt: skip
    tl.store(threshold_ptr + row, threshold)


@triton.jit
def row_scale(temperature):
    """What a row's logits are multiplied by: 1 where it is greedy."""
    return tl.where(temperature < GREEDY, 1.0, 1.0 / tl.maximum(temperature, GREEDY))


@triton.jit
def kept_logits(logits_row, v, vocab, scale, threshold_ptr, row, FILTERS: tl.constexpr):
    """`scaled_logits`, -inf below the row's threshold, which for greedy rows is -inf."""
    x = scaled_logits(logits_row, v, vocab, scale)
    if FILTERS:
        x = tl.where(x >= tl.load(threshold_ptr + row), x, float("-inf"))
    return x


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["slots_ptr"])
def weigh_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R]
    temperature_ptr,  # fp32 [max_slots]
    threshold_ptr,  # fp32 [R] or None
    weight_ptr,  # out fp32 [R, chunks]
    vocab,
    chunks,
    BLOCK: tl.constexpr,
    FILTERS: tl.constexpr,
):
    """The logarithm of a chunk's share of the row, log(sum(exp(x))); of greedy rows its largest logit."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    temperature = tl.load(temperature_ptr + slot.to(tl.int64))
    greedy = temperature < GREEDY
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    logits_row = logits_ptr + row.to(tl.int64) * stride_x
    x = kept_logits(logits_row, v, vocab, row_scale(temperature), threshold_ptr, row, FILTERS)
    weight = tl.max(x, axis=0)
    if not greedy:
        peak = tl.where(tl.abs(weight) < INF, weight, 0.0)
        total = tl.sum(tl.exp(x - peak), axis=0)
        weight = tl.where(total > 0.0, peak + tl.log(tl.maximum(total, 1e-30)), float("-inf"))
    tl.store(weight_ptr + row * chunks + chunk, weight)


@triton.jit(
    do_not_specialize=["chunks"],
    do_not_specialize_on_alignment=["slots_ptr", "position_ptr", "token_ptr"],
)
def draw_kernel(
    logits_ptr,
    stride_x,  # [R, V]
    slots_ptr,  # int32 [R]
    temperature_ptr,  # fp32 [max_slots]
    seed_ptr,  # int64 [max_slots]
    index_ptr,  # int32 [max_slots], which of a request's samples
    position_ptr,  # int32 [R], position of the token that is sampled
    threshold_ptr,  # fp32 [R] or None
    weight_ptr,  # fp32 [R, chunks]
    token_ptr,  # out int32 [R]
    last_token_ptr,  # out int32 [max_slots] or None
    count_row_ptr,  # int32 [max_slots], row of the counts, -1: none
    count_ptr,
    stride_count,  # int32 [*, V], 2 * (times generated) + (1 if in the prompt); or None
    vocab,
    chunks,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    FILTERS: tl.constexpr,
    COMMIT: tl.constexpr,
    COUNT: tl.constexpr,
):
    """A chunk, then a token of it: each time the best of value + Gumbel noise, which greedy rows go without.

    The token is written to its slot too, and counted where penalties need counts. Ties go to the smallest id; padded
    rows give 0.
    """
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        tl.store(token_ptr + row, 0)
        return
    safe = slot.to(tl.int64)
    temperature = tl.load(temperature_ptr + safe)
    greedy = temperature < GREEDY
    key = row_key(tl.load(seed_ptr + safe), tl.load(index_ptr + safe), tl.load(position_ptr + row))
    c = tl.arange(0, CHUNKS)
    weight = tl.load(weight_ptr + row * chunks + c, mask=c < chunks, other=float("-inf"))
    if not greedy:
        weight += gumbel(random_bits(key, c + FIRST_CHUNK))
    _, chunk = tl.max(weight, axis=0, return_indices=True, return_indices_tie_break_left=True)
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    logits_row = logits_ptr + row.to(tl.int64) * stride_x
    x = kept_logits(logits_row, v, vocab, row_scale(temperature), threshold_ptr, row, FILTERS)
    if not greedy:
        x += gumbel(random_bits(key, v))
    _, at = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
    token = chunk * BLOCK + at
    tl.store(token_ptr + row, token)
    if COMMIT:
        tl.store(last_token_ptr + slot, token)
    if COUNT:
        count_row = tl.load(count_row_ptr + slot)
        if count_row >= 0:
            entry = count_ptr + count_row.to(tl.int64) * stride_count + token
            tl.store(entry, tl.load(entry) + 2)
