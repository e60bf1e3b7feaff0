"""stream_decode against the float64 reference and paged_decode: ragged lengths, padding, shares that cut rows never,
once and often; and which of the two engines use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from tests.kernels.test_attention import Batch, behind, low_precision
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.decode import DecodeScratch, decode, decode_plan
from thranite_kernels.launch import int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode
from thranite_kernels.stream_decode import MAX_ROWS, MAX_SLOTS, StreamDecodePlan, stream_decode, streams
from thranite_kernels.target import STREAM_DECODE_ROWS, StreamDecodeConfig, Target, target_of
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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window", "softcap", "sink"),
    [
        (8, 2, 128, 64, 0, 0.0, False),
        (4, 2, 128, 64, 70, 0.0, False),
        (2, 1, 256, 16, 37, 50.0, False),
        (16, 2, 64, 64, 33, 0.0, True),
        (7, 1, 128, 128, 0, 30.0, True),
        (3, 3, 192, 32, 0, 0.0, False),
        (32, 1, 80, 16, 100, 0.0, True),
    ],
)
def test_it_gives_what_paged_decode_gives(
    device: str, heads: int, kv_heads: int, head_dim: int, block_size: int, window: int, softcap: float, sink: bool
) -> None:
    """The table's tiles for 16-bit caches; padding between rows, at the end, and alone."""
    dtype = low_precision(device)
    lengths = [130, 1, 64, 9, 257, 2] if device == "cuda" else [66, 64, 130, 2]  # the interpreter takes its time
    rows = len(lengths)
    target = None if device == "cuda" else Target(90, 5)
    for padded in ((1, rows - 1), tuple(range(rows))):
        batch = Batch([1] * rows, lengths, heads, kv_heads, head_dim, block_size, padded, dtype, device)
        q, kv, table, slots, _, contexts = batch.tensors
        sinks = torch.randn(heads, device=device) if sink else None
        expected, got = torch.full_like(q, 7.0), torch.full_like(q, 7.0)
        paged = DecodePlan.allocate(rows, heads, kv_heads, head_dim, window=window, device=device, target=target)
        paged.plan(slots, contexts)
        paged_decode(q, kv, table, paged, softcap=softcap, sinks=sinks, out=expected)
        stream = StreamDecodePlan.allocate(rows, heads, kv_heads, head_dim, window=window, device=device, target=target)
        stream.plan(slots, contexts)
        stream_decode(q, kv, table, stream, softcap=softcap, sinks=sinks, out=got)
        assert_close(got, expected.double())
        assert torch.equal(got[list(padded)], torch.full_like(got[list(padded)], 7.0))


Arrivals = dict[tuple[int, int], list[int]]


def arrivals(shares: Sequence[Sequence[int]], tiles: Sequence[int], kv_heads: int) -> Arrivals:
    """Programs of each run, (row, head), in order, found by walking the shares."""
    steps = [(row, head) for row, count in enumerate(tiles) for head in range(kv_heads) for _ in range(count)]
    found: Arrivals = {}
    at = 0
    for program, share in enumerate(shares):
        for run in dict.fromkeys(steps[at : at + share[0]]):
            found.setdefault(run, []).append(program)
        at += share[0]
    assert at == len(steps)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_programs_of_a_run_know_each_other(device: str, seed: int) -> None:
    """Those that count their arrival at a run are those that hold keys of it; else one would combine too early or none
    ever would."""
    drawn = random.Random(seed)
    rows = drawn.randint(1, 12)
    contexts = [drawn.choice([0, 1, 16, drawn.randint(1, 60), drawn.randint(1, 700)]) for _ in range(rows)]
    padded = tuple(row for row in range(rows) if drawn.random() < 0.2)
    config = replace(FEW, whole_tiles=drawn.choice([1, 2, 4, 9]), min_tiles=drawn.choice([1, 2, 5]))
    batch = Batch([1] * rows, contexts, padded=padded, head_dim=16, device=device)
    window = drawn.choice([0, 0, 50])
    plan = planned(batch, config, window, sms=drawn.choice([1, 2, 5, 11]))
    first = [max(context - window, 0) // 16 if window else 0 for context in contexts]
    ends = [-(-context // 16) for context in contexts]
    tiles = [0 if row in padded else end - begin for row, (begin, end) in enumerate(zip(first, ends, strict=True))]
    shares = plan.shares.tolist()
    runs = arrivals(shares, tiles, batch.kv_heads)
    told: Arrivals = {}
    for program, share in enumerate(shares):
        if share[0]:
            if share[4] != share[5]:
                told.setdefault((share[9], share[2]), []).append(program)
                assert runs[share[9], share[2]] == list(range(share[4], share[5] + 1))
            if share[6] != program:
                told.setdefault((share[12], share[13]), []).append(program)
                assert runs[share[12], share[13]] == list(range(program, share[6] + 1))
    assert told == {run: programs for run, programs in runs.items() if len(programs) > 1}
    assert all(after == before + 1 for programs in runs.values() for before, after in pairwise(programs))


@pytest.mark.parametrize("seed", range(2))
def test_whoever_arrives_last(device: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs in order, so the last one of a run would always be the one that combines."""
    if device == "cuda":
        pytest.skip("the order is the device's")
    batch = Batch([1] * 5, [150, 9, 70, 260, 33], padded=(1,), head_dim=16, device=device)
    q, kv, table, slots, cu, contexts = batch.tensors
    plan, sinks = planned(batch, FEW, sms=9), torch.randn(batch.heads)
    expected = stream_decode(q, kv, table, plan, sinks=sinks)
    order = list(range(9))[::-1] if seed == 0 else random.Random(seed).sample(range(9), 9)
    in_order = interpreter_builder.set_grid_idx
    monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda x, y, z: in_order(order[x], y, z))
    live = [0, 2, 3, 4]
    assert torch.equal(stream_decode(q, kv, table, plan, sinks=sinks)[live], expected[live])
    assert not bool(plan.count.any())
    reference = paged_attention_reference(q, kv, table, slots, cu, contexts, sinks=sinks)
    assert_close(expected[live], reference[live])


def test_more_rows_than_a_block_of_the_plan(device: str) -> None:
    """The plan reads lengths in blocks of rows: of 4 instead of 1,024, the lists are the same."""
    batch = Batch([1] * 11, [31 * i % 100 for i in range(11)], padded=(0, 3, 4, 10), head_dim=16, device=device)
    plan, again = planned(batch, WHOLE), planned(batch, WHOLE)
    again.row_list.fill_(-7)
    again.shares.fill_(-7)
    launch = again.plan_launch(batch.tensors[3], batch.tensors[5])
    launch.constants = {**launch.constants, "BLOCK_R": 4}
    launch.run()
    assert torch.equal(plan.shares, again.shares)
    assert torch.equal(plan.row_list, again.row_list)


def test_pages_beyond_two_to_the_31_elements(device: str, tmp_path: Path) -> None:
    """Of a sparse file where there is no such memory."""
    batch = Batch([1] * 2, [40, 17], head_dim=64, block_size=16, dtype=low_precision(device), device=device)
    q, kv, table, slots, cu, contexts = batch.tensors
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts)
    stride = (1 << 31) // (len(kv) - 2) // 16 * 16
    size = stride * (len(kv) - 1) + kv[0].numel()
    if device == "cuda":
        memory = torch.empty(size, dtype=kv.dtype, device=device)
    else:
        memory = torch.from_file(str(tmp_path / "pages"), shared=True, size=size, dtype=kv.dtype)
    apart = memory.as_strided(kv.shape, (stride, *kv.stride()[1:]))
    apart.copy_(kv)
    assert_close(stream_decode(q, apart, table, planned(batch, FEW)), expected)


LLAMA = (32, 8, 128)


def test_which_kernel_engines_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's rows, and only what the kernel takes."""
    monkeypatch.setattr(
        "thranite_kernels.stream_decode.STREAM_DECODE_ROWS", {90: range(17, 1 << 20), 100: range(1, 65)}
    )
    hopper = Target(90, 132)
    assert [rows for rows in (1, 16, 17, 1024, MAX_ROWS, MAX_ROWS + 1) if streams(hopper, rows, LLAMA, 2, 4096)] == [
        17, 1024, MAX_ROWS,
    ]  # fmt: skip
    assert not any(streams(Target(capability, 108), 64, LLAMA, 2, 64) for capability in (80, 89))
    assert [rows for rows in (0, 1, 64, 65) if streams(Target(100, 148), rows, LLAMA, 2, 64)] == [1, 64]
    assert not streams(hopper, 64, LLAMA, 4, 64)
    assert streams(hopper, 64, (32, 2, 128), 2, MAX_SLOTS)
    assert not streams(hopper, 64, (17, 1, 128), 2, 64)
    assert not streams(hopper, 64, LLAMA, 2, MAX_SLOTS + 1)


def test_sizes_of_both_kernels_share_their_own_scratch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As graphs do, largest first; then with a window. Each plan runs through its own kernel."""
    bound = 17
    monkeypatch.setitem(STREAM_DECODE_ROWS, target_of(torch.device(device)).capability, range(bound, 1 << 15))
    scratch, plans = DecodeScratch(), []
    for rows, window in ((bound + 2, 0), (bound, 20), (bound - 1, 0), (1, 20)):
        plan = decode_plan(
            rows, (4, 2, 64), window=window, itemsize=2, slots=64, device=torch.device(device), scratch=scratch
        )
        batch = Batch([1] * rows, [40 + row for row in range(rows)], dtype=low_precision(device), device=device)
        q, kv, table, slots, cu, contexts = batch.tensors
        plan.plan(slots, contexts)
        expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=window)
        assert_close(decode(q, kv, table, plan), expected)
        plans.append(plan)
    assert [type(plan) for plan in plans] == [StreamDecodePlan, StreamDecodePlan, DecodePlan, DecodePlan]
    assert plans[0].partial is plans[1].partial
    assert plans[2].count is plans[3].count
    assert plans[0].partial is not plans[2].partial
