# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `packet_all_reduce` and `packet_all_reduce_norm`: parts travel as words with a count beside each.

A packet is 64 bits: 32 of data, and 32 of the call's count. Naturally aligned, it is written and read as a whole, so
whoever reads the count it waits for has the data too: no signal, no fence, one way over the link. Two halves of the
packets take turns. A rank writes a half again two calls later, when it holds its peer's packets of the call between,
and the peer sent those after its kernel before, with all its reads, had ended: for each program by itself, as in
`_all_reduce.py`. A count comes again after 2³² calls of a program, and would mislead only where no call between has
written the word. (The packets are those of NCCL's LL protocol.)
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._peer import LOOK, stopped


@triton.jit
def _send(packets_ptr, slot, word, epoch, live, cols, RANK: tl.constexpr, SIZE: tl.constexpr):
    """Write words, each with the count, to every peer at element `slot` + cols of its packets."""
    packet = (epoch.to(tl.int64) << 32) | (word.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(1, SIZE):
        theirs = tl.load(packets_ptr + (RANK + step) % SIZE).to(tl.pointer_type(tl.int64))
        tl.store(tl.multiple_of(theirs, 16) + slot + cols, packet, mask=live)


@triton.jit
def _absent(packet, epoch, live):
    return tl.max(tl.where(live & ((packet >> 32).to(tl.int32) != epoch), 1, 0))


@triton.jit
def _receive(mine, slot, epoch, live, cols, stop_ptr):
    """The words that a peer wrote at element `slot` + cols here, once all have come."""
    at = mine + slot + cols
    packet = tl.load(at, mask=live, other=0, volatile=True)
    absent = _absent(packet, epoch, live)
    polls = 0
    while absent > 0:
        packet = tl.load(at, mask=live, other=0, volatile=True)
        absent = _absent(packet, epoch, live)
        polls += 1
        if polls % LOOK == 0:
            absent = tl.where(stopped(stop_ptr, polls), 0, absent)
    return packet.to(tl.int32)


@triton.jit
def _unpack(word, element: tl.constexpr):
    """The one or two elements of a word in fp32, the lower first; 0 for the second where there is none."""
    if element == tl.float32:
        low = word.to(tl.float32, bitcast=True)
        high = tl.zeros_like(low)
    else:
        low = (word & 0xFFFF).to(tl.int16).to(element, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(element, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _pack(low, high, element: tl.constexpr):
    """The word of one or two fp32 values, rounded to the element's type."""
    if element == tl.float32:
        word = low.to(tl.int32, bitcast=True)
    else:
        bits = low.to(element).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        word = (high.to(element).to(tl.int16, bitcast=True).to(tl.int32) << 16) | bits
    return word


@triton.jit
def _sum(
    word,  # this rank's own
    mine,  # its packets
    slot,  # of rank 0's
    stride,  # from one rank's to the next
    epoch,
    live,
    cols,
    stop_ptr,
    element: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The words of the sum over the ranks: fp32, in rank order, rounded once."""
    low, high = _unpack(tl.zeros_like(word), element)
    for peer in tl.static_range(SIZE):
        if peer == RANK:
            part = word
        else:
            part = _receive(mine, slot + peer * stride, epoch, live, cols, stop_ptr)
        part_low, part_high = _unpack(part, element)
        low += part_low
        high += part_high
    return _pack(low, high, element)


@triton.jit
def packet_all_reduce_kernel(
    x_ptr,  # [words], this rank's part as 32-bit words of x's type
    out_ptr,  # as x; may be x_ptr
    packets_ptr,  # int64 [SIZE], the address of each rank's packets int64 [2, SIZE, PROGRAMS, CHUNK]
    stop_ptr,  # int64 [2], as `_peer.stopped` reads it
    epochs_ptr,  # int32 [PROGRAMS], this rank's own: calls that each program has taken part in
    words,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = x of rank 0 + x of rank 1 + …"""
    program = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    epoch = tl.load(epochs_ptr + program) + 1
    stride = PROGRAMS * CHUNK
    slot = (epoch & 1) * SIZE * stride + program * CHUNK
    mine = tl.multiple_of(tl.load(packets_ptr + RANK).to(tl.pointer_type(tl.int64)), 16)
    share = tl.cdiv(tl.cdiv(words, tl.num_programs(0)), BLOCK) * BLOCK
    first = program * share
    cols = tl.arange(0, BLOCK)
    element = x_ptr.dtype.element_ty
    x_words = x_ptr.to(tl.pointer_type(tl.int32))
    out_words = out_ptr.to(tl.pointer_type(tl.int32))
    for at in range(0, share, BLOCK):
        live = first + at + cols < words
        word = tl.load(x_words + first + at + cols, mask=live, other=0)
        _send(packets_ptr, slot + RANK * stride + at, word, epoch, live, cols, RANK, SIZE)
    for at in range(0, share, BLOCK):
        live = first + at + cols < words
        word = tl.load(x_words + first + at + cols, mask=live, other=0)
        total = _sum(word, mine, slot + at, stride, epoch, live, cols, stop_ptr, element, RANK, SIZE)
        tl.store(out_words + first + at + cols, total, mask=live)
    tl.store(epochs_ptr + program, epoch)


@triton.jit(do_not_specialize=["rows", "eps"])
def packet_all_reduce_norm_kernel(
    x_ptr,  # [rows, N], this rank's part
    residual_ptr,  # [rows, N], updated in place
    weight_ptr,  # [N]
    out_ptr,  # [rows, N]; may be x_ptr
    packets_ptr,  # as above
    stop_ptr,
    epochs_ptr,
    rows,
    eps,
    WORDS: tl.constexpr,  # of a row
    N: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """s = x of rank 0 + x of rank 1 + …, rounded; h = s + residual, rounded and written back; out = h / rms(h) · w.

    The roundings are those of the sum and of `rms_norm` one after another. Row r is program r mod the grid's.
    """
    program = tl.program_id(0)
    grid = tl.num_programs(0)
    mine = tl.multiple_of(tl.load(packets_ptr + RANK).to(tl.pointer_type(tl.int64)), 16)
    cols = tl.arange(0, BLOCK)
    live = cols < WORDS
    element = x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr.to(tl.pointer_type(tl.int32)) + cols, mask=live, other=0)
    weight_low, weight_high = _unpack(weight, element)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    epoch = tl.load(epochs_ptr + program) + 1
    stride = PROGRAMS * CHUNK
    slot = (epoch & 1) * SIZE * stride + program * CHUNK
    x_words = x_ptr.to(tl.pointer_type(tl.int32))
    out_words = out_ptr.to(tl.pointer_type(tl.int32))
    residual_words = residual_ptr.to(tl.pointer_type(tl.int32))
    at = 0
    for row in range(program, rows, grid):
        word = tl.load(x_words + row * WORDS + cols, mask=live, other=0)
        _send(packets_ptr, slot + RANK * stride + at, word, epoch, live, cols, RANK, SIZE)
        at += WORDS
    at = 0
    for row in range(program, rows, grid):
        word = tl.load(x_words + row * WORDS + cols, mask=live, other=0)
        before_low, before_high = _unpack(tl.load(residual_words + row * WORDS + cols, mask=live, other=0), element)
        total = _sum(word, mine, slot + at, stride, epoch, live, cols, stop_ptr, element, RANK, SIZE)
        low, high = _unpack(total, element)
        stream = _pack(low + before_low, high + before_high, element)
        tl.store(residual_words + row * WORDS + cols, stream, mask=live)
        low, high = _unpack(stream, element)
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=0) / N + eps)
        normed = _pack(low * scale * weight_low, high * scale * weight_high, element)
        tl.store(out_words + row * WORDS + cols, normed, mask=live)
        at += WORDS
    tl.store(epochs_ptr + program, epoch)
