"""stream_decode against the float64 reference: ragged lengths, padding, shares that cut rows never, once and often."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.test_attention import Batch, behind, low_precision
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.launch import int32
from thranite_kernels.stream_decode import StreamDecodePlan, stream_decode
from thranite_kernels.target import StreamDecodeConfig, Target, target_of
from thranite_kernels.testing import assert_close

FEW = StreamDecodeConfig(tile=16, num_stages=2, ctas_per_sm=1, min_tiles=1, whole_tiles=1)
MANY = replace(FEW, ctas_per_sm=3)
WHOLE = replace(FEW, ctas_per_sm=2, whole_tiles=3)


def planned(batch: Batch, config: StreamDecodeConfig, window: int = 0, sms: int = 8) -> StreamDecodePlan:
    """A plan made into poisoned lists."""
    target = target_of(torch.device("cuda")) if batch.device == "cuda" else Target(90, sms)
    plan = StreamDecodePlan.allocate(
        len(batch.contexts), batch.heads, batch.kv_heads, batch.head_dim, window=window, device=batch.device,
        target=target, config=config,
    )  # fmt: skip
    plan.row_list.fill_(-7)
    plan.shares.fill_(-7)
    plan.partial.fill_(float("nan"))
    plan.lse.fill_(float("nan"))
    _, _, _, slots, _, contexts = batch.tensors
    plan.plan(slots, contexts)
    return plan


def check(batch: Batch, plan: StreamDecodePlan, softcap: float = 0.0, sink: bool = False) -> None:
    """Two layers over the same scratch (the counters must be back at zero); padding's output stays."""
    q, kv, table, slots, cu, contexts = batch.tensors
    sinks = torch.randn(batch.heads, device=batch.device) if sink else None
    expected = paged_attention_reference(
        q, kv, table, slots, cu, contexts, window=plan.window, softcap=softcap, sinks=sinks
    )
    outs = [torch.full_like(q, 7.0) for _ in range(2)]
    for out in outs:
        stream_decode(q, kv, table, plan, softcap=softcap, sinks=sinks, out=out)
    assert torch.equal(outs[0], outs[1])
    for row, context in enumerate(batch.contexts):
        if row in batch.padded or context == 0:
            expected[row] = 7.0
    assert_close(outs[0], expected)
    assert not bool(plan.count.any())


@pytest.mark.parametrize("config", [FEW, MANY, WHOLE])
@pytest.mark.parametrize("low", [False, True])
def test_ragged(device: str, config: StreamDecodeConfig, low: bool) -> None:
    """Lengths around the tile, a long row, padding rows in between; fp32 and 16-bit."""
    dtype = low_precision(device) if low else torch.float32
    batch = Batch([1] * 7, [1, 15, 16, 17, 150, 9, 33], padded=(0, 5), dtype=dtype, device=device)
    check(batch, planned(batch, config))


@pytest.mark.parametrize("contexts", [[1], [17], [500], [40] * 9, [3] * 20, [0, 60, 0]])
def test_one_row_and_many(device: str, contexts: list[int]) -> None:
    """Fewer steps than programs, a row that all programs share, whole rows for each; no keys."""
    batch = Batch([1] * len(contexts), contexts, device=device)
    check(batch, planned(batch, FEW, sms=5))


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(1, 1, 80, 32), (16, 1, 64, 64), (6, 3, 96, 16), (5, 1, 112, 128)]
)
def test_shapes(device: str, tile: int, heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    """Groups of 1 to 16, head sizes between powers of two, tiles inside a page and across pages."""
    batch = Batch([1] * 3, [47, 5, 71], heads, kv_heads, head_dim, block_size, device=device)
    check(batch, planned(batch, replace(FEW, tile=tile), sms=5))


@pytest.mark.parametrize(("window", "softcap", "sink"), [(20, 0.0, False), (7, 3.0, True), (0, 0.0, True)])
def test_options(device: str, window: int, softcap: float, sink: bool) -> None:
    batch = Batch([1] * 4, [90, 31, 3, 140], padded=(1,), device=device)
    check(batch, planned(batch, FEW, window), softcap, sink)


def test_reads_nothing_behind_the_window(device: str) -> None:
    """Tiles of two pages, the first of them freed."""
    batch = Batch([1] * 3, [100, 31, 71], device=device)
    q, kv, table, slots, cu, contexts = batch.tensors
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=20)
    behind(batch, 20)
    assert_close(stream_decode(q, kv, table, planned(batch, replace(FEW, tile=32), 20)), expected)


@pytest.mark.parametrize("sms", [3, 7, 16])
@pytest.mark.parametrize("whole", [1, 3])
def test_shares_are_equal_but_for_short_rows(device: str, sms: int, whole: int) -> None:
    """All steps, each once and in order; rows of up to `whole` tiles are not cut."""
    if device == "cuda":
        pytest.skip("the number of programs is given")
    contexts = [1, 33, 100, 0, 16, 48, 49, 200]
    batch = Batch([1] * 8, contexts, padded=(4,), device=device)
    plan = planned(batch, replace(FEW, whole_tiles=whole), sms=sms)
    tiles = [0 if row in batch.padded else -(-context // 16) for row, context in enumerate(contexts)]
    steps = [(row, head, tile) for row, n in enumerate(tiles) for head in range(2) for tile in range(n)]
    live = [row for row, n in enumerate(tiles) if n]
    assert [row[0] // 65536 for row in plan.row_list.tolist()[: len(live)]] == live
    shares, at = plan.shares.tolist(), 0
    for share in shares:
        if share[0]:
            assert (live[share[1]], share[2], share[3]) == steps[at]
            assert share[9] == steps[at][0]
            at += share[0]
            assert (share[12], share[13]) == steps[at - 1][:2]
            if share[3] > 0:
                assert tiles[share[9]] > whole
    assert at == len(steps)
    spread = max(share[0] for share in shares) - min(share[0] for share in shares)
    assert spread <= 1 + 4 * (whole // 2)  # a border moves by half a short row


def test_padding_changes_no_bit(device: str) -> None:
    """The same rows with and without padding rows, whatever the padding's context says."""
    batch = Batch([1] * 4, [70, 20, 130, 50], padded=(1, 3), device=device)
    q, kv, table, slots, _, contexts = batch.tensors
    outs = []
    for lengths in ([70, 0, 130, 0], [70, 9999, 130, 31]):
        plan = StreamDecodePlan.allocate(4, 4, 2, 64, device=device, config=FEW)
        plan.plan(slots, int32(lengths, device))
        outs.append(stream_decode(q, kv, table, plan))
    plan = StreamDecodePlan.allocate(2, 4, 2, 64, device=device, config=FEW)
    plan.plan(slots[::2].contiguous(), contexts[::2].contiguous())
    alone = stream_decode(q[::2].contiguous(), kv, table, plan)
    assert torch.equal(outs[0][::2], outs[1][::2])
    assert torch.equal(outs[0][::2], alone)
