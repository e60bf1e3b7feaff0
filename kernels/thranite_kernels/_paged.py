# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code that both attention kernels share: where a tile of keys lies, and how scores are shaped."""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
ANY_CACHE: tl.constexpr = tl.constexpr("")
NO_SCORE: tl.constexpr = tl.constexpr(-1.0e30)
"""Start of the running maximum: finite, so that a tile without a visible key gives exp2(-inf) = 0 and never NaN."""


@triton.jit
def tile_pages(table_ptr, start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, CACHE: tl.constexpr = ANY_CACHE):
    """Pages of tokens start..start + TILE (`start` a multiple of TILE): one page, or int32 [TILE] where a tile spans
    several. Block-table entries at or past `end` are not read.

    Loops carry this value and fetch it one tile ahead: loaded in the iteration that needs it, it would stand between
    the loop counter and the keys' addresses, and the compiler would then not keep two tiles of keys in flight."""
    if BLOCK_SIZE % TILE == 0:
        return tl.load(table_ptr + start // BLOCK_SIZE, mask=start < end, other=0, cache_modifier=CACHE)
    else:
        token = start + tl.arange(0, TILE)
        return tl.load(table_ptr + token // BLOCK_SIZE, mask=token < end, other=0, cache_modifier=CACHE)


@triton.jit
def tile_offsets(pages, start, stride_page, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """int64 [TILE]: element offset, within one head's K or V, of tokens start..start + TILE on `pages`."""
    n = tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        return pages.to(tl.int64) * stride_page + (start % BLOCK_SIZE + n) * HEAD_DIM
    else:
        return pages.to(tl.int64) * stride_page + ((start + n) % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def shape_scores(scores, score_scale, cap_scale, SOFTCAP: tl.constexpr):
    """Scores in units of log2: scale * log2(e), or cap * log2(e) * tanh(scale / cap * s)."""
    scores = scores * score_scale
    if SOFTCAP:
        scores = cap_scale * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E)) + 1.0))
    return scores


@triton.jit
def add_sink(acc, top, total, sink):
    """Let a logit without a value (log2 units, one per row) take its share of the softmax."""
    new_top = tl.maximum(top, sink)
    keep = tl.exp2(top - new_top)
    return acc * keep[:, None], total * keep + tl.exp2(sink - new_top)
