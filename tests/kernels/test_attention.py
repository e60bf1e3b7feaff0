"""paged_decode and paged_prefill against the float64 reference: ragged lengths, groups, windows, softcaps, sinks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.paged_batch import Batch, check_decode
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.launch import cdiv, int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode
from thranite_kernels.paged_prefill import PrefillPlan, kv_descriptor, paged_prefill
from thranite_kernels.prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs
from thranite_kernels.target import DecodeConfig, PrefillConfig
from thranite_kernels.testing import assert_close


def low_precision(device: str) -> torch.dtype:
    """bf16 on a GPU; fp16 in the interpreter, whose dot multiplies bf16 bit patterns as integers."""
    return torch.bfloat16 if device == "cuda" else torch.float16


ONE_SPLIT = DecodeConfig(tile=16, num_warps=4, num_stages=2, ctas_per_sm=1, min_tiles=100)
MANY_SPLITS = DecodeConfig(tile=16, num_warps=4, num_stages=2, ctas_per_sm=4, min_tiles=1)


@pytest.mark.parametrize("config", [ONE_SPLIT, MANY_SPLITS])
@pytest.mark.parametrize("low", [False, True])
def test_decode_ragged(device: str, config: DecodeConfig, low: bool) -> None:
    """Lengths around the tile, a long row, padding rows in between; fp32 and 16-bit."""
    dtype = low_precision(device) if low else torch.float32
    check_decode(Batch([1] * 7, [1, 15, 16, 17, 150, 9, 33], padded=(0, 5), dtype=dtype, device=device), config)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(1, 1, 80, 32), (16, 1, 64, 64), (6, 2, 96, 16), (5, 1, 112, 128), (4, 4, 160, 16), (3, 1, 192, 16)],
)
def test_decode_shapes(device: str, heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    """Groups of 1 to 16, head sizes between powers of two, tiles inside a page and across pages."""
    check_decode(Batch([1, 1], [47, 5], heads, kv_heads, head_dim, block_size, device=device), MANY_SPLITS)


@pytest.mark.parametrize(("window", "softcap", "sink"), [(20, 0.0, False), (7, 3.0, True), (0, 0.0, True)])
@pytest.mark.parametrize("max_q", [1, 5])
def test_decode_options(device: str, window: int, softcap: float, sink: bool, max_q: int) -> None:
    """Window, softcap and sinks, with one query and with several a row; splits include fully hidden tiles."""
    q_lens = [1, 1, 1] if max_q == 1 else [5, 1, 3]
    batch = Batch(q_lens, [90, 31, 3], head_dim=64, padded=(1,) if max_q == 1 else (), device=device)
    check_decode(batch, MANY_SPLITS, window, softcap, sink)


def behind(batch: Batch, window: int) -> None:
    """Pages that no query sees any more are free: page 0, which anything may have been written to."""
    _, kv, table, slots, _, _ = batch.tensors
    kv[0] = float("nan")
    for slot, context, queries in zip(slots.tolist(), batch.contexts, batch.q_lens, strict=True):
        table[slot, : max(context - queries + 1 - window, 0) // batch.block_size] = 0


@pytest.mark.parametrize("max_q", [1, 5])
def test_decode_reads_nothing_behind_the_window(device: str, max_q: int) -> None:
    """Tiles of two pages, the first of them freed."""
    config = DecodeConfig(tile=32, num_warps=4, num_stages=2, ctas_per_sm=4, min_tiles=1)
    batch = Batch([1, 1, 1] if max_q == 1 else [5, 1, 3], [100, 31, 71], block_size=16, device=device)
    q, kv, table, slots, cu, contexts = batch.tensors
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=20)
    behind(batch, 20)
    plan = DecodePlan.allocate(3, 4, 2, 64, max_q=max_q, window=20, device=device, config=config)
    plan.plan(slots, contexts, cu if max_q > 1 else None)
    assert_close(paged_decode(q, kv, table, plan), expected)


def test_decode_leaves_short_rows_whole(device: str) -> None:
    """Rows of up to `whole_tiles` tiles have one split, padding has none; longer ones are cut as ever."""
    config = replace(MANY_SPLITS, whole_tiles=3)
    q, kv, table, slots, cu, contexts = Batch([1] * 5, [48, 49, 70, 200, 1], padded=(2,), device=device).tensors
    plan = DecodePlan.allocate(5, 4, 2, 64, device=device, config=config)
    plan.plan(slots, contexts)
    items = plan.items.tolist()
    splits = {item[6]: item[0] for item in items if item[0]}  # by the row's first query
    assert splits.keys() == {0, 1, 3, 4}
    assert splits[0] == splits[4] == 1 < splits[1] < splits[3]  # how many depends on the device's size
    assert sum(item[0] > 0 for item in items) == sum(splits.values())
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts)
    live = [0, 1, 3, 4]
    assert_close(paged_decode(q, kv, table, plan)[live], expected[live])


def test_decode_begins_with_the_longest_splits(device: str) -> None:
    """Each split once, in descending order of their tiles; of more rows than one block of the plan's reads, too."""
    rows = 1100 if device == "cuda" else 9
    lengths = [(37 * r) % 500 + 1 for r in range(rows)]
    _, _, _, slots, _, _ = Batch([1] * rows, [1] * rows, padded=(4,), device=device).tensors
    plan = DecodePlan.allocate(rows, 4, 2, 64, device=device, config=replace(MANY_SPLITS, ctas_per_sm=1))
    plan.plan(slots, int32(lengths, device))
    items = [item for item in plan.items.tolist() if item[0]]
    tile = plan.config.tile
    longest = [cdiv(cdiv(lengths[item[6]], tile), item[0]) for item in items]
    assert longest == sorted(longest, reverse=True)
    assert len(set(longest)) > 1
    read = {row: sorted((item[3], item[4]) for item in items if item[6] == row) for row in range(rows)}
    assert read.pop(4) == []
    for row, pieces in read.items():
        assert [begin for begin, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
        assert pieces[-1][1] == lengths[row]


def test_decode_many_query_rows(device: str) -> None:
    """16 heads of a group times 8 queries take two programs a kv head."""
    check_decode(Batch([8, 7], [40, 19], 16, 1, 64, device=device), MANY_SPLITS)


def test_decode_padding_changes_no_bit(device: str) -> None:
    """The same rows with and without padding rows, whatever the padding's context says."""
    q, kv, table, slots, _, contexts = Batch([1] * 4, [70, 20, 130, 50], padded=(1, 3), device=device).tensors
    outs = []
    for lengths in ([70, 0, 130, 0], [70, 9999, 130, 31]):
        plan = DecodePlan.allocate(4, 4, 2, 64, device=device, config=MANY_SPLITS)
        plan.plan(slots, int32(lengths, device))
        outs.append(paged_decode(q, kv, table, plan))
    plan = DecodePlan.allocate(2, 4, 2, 64, device=device, config=MANY_SPLITS)
    plan.plan(slots[::2].contiguous(), contexts[::2].contiguous())
    alone = paged_decode(q[::2].contiguous(), kv, table, plan)
    assert torch.equal(outs[0][::2], outs[1][::2])
    assert torch.equal(outs[0][::2], alone)


def check_prefill(
    batch: Batch, config: PrefillConfig, window: int = 0, softcap: float = 0.0, sink: bool = False
) -> None:
    """One launch into a poisoned output."""
    q, kv, table, slots, cu, contexts = batch.tensors
    plan = PrefillPlan.allocate(
        len(batch.q_lens), q.shape[0], batch.heads, batch.kv_heads, config=config, device=batch.device
    )
    plan.items.fill_(-7)
    plan.plan(slots, contexts, cu)
    sinks = torch.randn(batch.heads, device=batch.device) if sink else None
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=window, softcap=softcap, sinks=sinks)
    out = torch.full_like(q, float("nan"))
    paged_prefill(q, kv, table, plan, window=window, softcap=softcap, sinks=sinks, out=out)
    assert_close(out, expected)


SMALL = PrefillConfig(block_m=32, tile=16, num_warps=4, num_stages=2)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("window", "softcap", "sink"), [(0, 0.0, False), (20, 0.0, False), (5, 3.0, True)])
def test_prefill_mixed_batch(device: str, low: bool, window: int, softcap: float, sink: bool) -> None:
    """Whole prompts, a chunk after a prefix, single queries, an empty row and a padded one."""
    dtype = low_precision(device) if low else torch.float32
    batch = Batch([37, 1, 20, 0, 3, 16], [37, 40, 71, 8, 3, 16], padded=(4,), dtype=dtype, device=device)
    check_prefill(batch, SMALL, window, softcap, sink)


def test_prefill_reads_nothing_behind_the_window(device: str) -> None:
    """Tiles of two pages, the first of them freed."""
    config = PrefillConfig(block_m=32, tile=32, num_warps=4, num_stages=2)
    batch = Batch([37, 1, 20], [100, 40, 71], block_size=16, device=device)
    q, kv, table, slots, cu, contexts = batch.tensors
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=20)
    behind(batch, 20)
    plan = PrefillPlan.allocate(3, len(q), 4, 2, config=config, device=device)
    plan.plan(slots, contexts, cu)
    assert_close(paged_prefill(q, kv, table, plan, window=20), expected)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(1, 1, 80, 32), (16, 1, 64, 64), (6, 2, 96, 16), (5, 1, 112, 128), (3, 3, 256, 16)],
)
def test_prefill_shapes(device: str, heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    """Groups that do not divide the tile, padded head sizes, several page sizes."""
    check_prefill(Batch([19, 2], [30, 2], heads, kv_heads, head_dim, block_size, device=device), SMALL)


@pytest.mark.parametrize("window", [0, 40])
def test_prefill_tensor_maps(device: str, window: int) -> None:
    """Unmasked tiles through descriptors; pages lie apart in memory."""
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("tensor-map copies need sm_90")
    config = PrefillConfig(block_m=64, tile=32, num_warps=4, num_stages=2, tma=True)
    batch = Batch([70, 9], [100, 75], head_dim=64, block_size=32, dtype=low_precision(device), device=device)
    q, kv, *rest = batch.tensors
    apart = torch.full((kv.shape[0], 3, *kv.shape[1:]), float("nan"), dtype=kv.dtype, device=device)
    apart[:, 1] = kv
    batch.tensors = (q, apart[:, 1], *rest)
    assert kv_descriptor(apart[:, 1], config) is not None
    check_prefill(batch, config, window)


Q_LENS = [1, 1, 25, 5]


def one_axis(batch: Batch, spare: tuple[int, int, int], prefill_first: bool = False) -> torch.Tensor:
    """Two rows that decode and two prompts' of `batch`, their tokens without gaps, beside room for more rows of both
    kinds and more tokens, whose queries are NaN: `spare`. What is not written stays 7."""
    q, kv, table, slots, _, contexts = batch.tensors
    device = batch.device
    decodes, prompts, tokens = 2 + spare[0], 2 + spare[1], len(q) + spare[2]
    live = [0, 1, decodes, decodes + 1]
    named = torch.full((decodes + prompts,), -1, dtype=torch.int32, device=device)
    new, zeros = torch.zeros_like(named), torch.zeros_like(named)
    named[live] = slots
    new[live] = int32(Q_LENS, device)
    rows = RowPlan(slots=named, new=new, from_last=zeros, id_start=zeros, ids=int32([0] * 30, device))
    lengths = torch.zeros_like(table[:, 0])
    lengths[slots.long()] = contexts - int32(Q_LENS, device)
    state = SlotState(torch.zeros_like(lengths), lengths, table)
    step = prepare_inputs(state, rows, StepInputs.allocate(decodes + prompts, tokens, device), block_size=16)

    decode = DecodePlan.allocate(decodes, 4, 2, 64, device=device, config=MANY_SPLITS)
    prefill = PrefillPlan.allocate(prompts, tokens, 4, 2, config=SMALL, device=device)
    decode.items.fill_(-7)
    prefill.items.fill_(-7)
    decode.plan(named[:decodes], step.context_lens[:decodes])
    prefill.plan(named[decodes:], step.context_lens[decodes:], step.cu_q[decodes:])
    q = torch.cat([q, torch.full_like(q[: spare[2]], float("nan"))])
    out = torch.full_like(q, 7.0)
    if prefill_first:
        paged_prefill(q, kv, table, prefill, out=out)
    paged_decode(q, kv, table, decode, out=out)
    if not prefill_first:
        paged_prefill(q, kv, table, prefill, out=out)
    return out


@pytest.mark.parametrize("prefill_first", [True, False])
def test_decodes_and_prompts_on_one_axis_of_tokens(device: str, prefill_first: bool) -> None:
    """Each token is written by its own row's operation alone and padding's by none, in whatever order they run."""
    batch = Batch(Q_LENS, [47, 150, 25, 40], device=device)
    q, *rest = batch.tensors
    out = one_axis(batch, (4, 2, 8), prefill_first)
    assert_close(out[: len(q)], paged_attention_reference(q, *rest))
    assert torch.equal(out[len(q) :], torch.full_like(out[len(q) :], 7.0))


def test_room_for_rows_and_tokens_changes_no_bit(device: str) -> None:
    batch = Batch(Q_LENS, [47, 150, 25, 40], device=device)
    assert torch.equal(one_axis(batch, (4, 2, 8))[:32], one_axis(batch, (0, 0, 0)))
