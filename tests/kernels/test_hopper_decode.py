"""paged_decode on Hopper against the float64 reference on a GPU: ragged lengths, groups, splits; what it takes, and how
rows are cut for it.

Its kernel is Gluon's, which no interpreter runs; what it does before it waits is in `test_early_starts.py`.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.hopper import H200, meta, on_hopper
from tests.support.paged_batch import Batch, Shape, check_decode, hopper_batch, lengths, spread_pages
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.hopper_decode import FEW_ROWS, decode_by_wgmma
from thranite_kernels.launch import int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode, paged_decode_launch
from thranite_kernels.rope_kv import rope_kv
from thranite_kernels.target import DecodeConfig, Target, decode_config, pretended
from thranite_kernels.testing import assert_close

MANY_SPLITS = DecodeConfig(tile=64, num_warps=4, num_stages=3, ctas_per_sm=4, min_tiles=1)
ONE_SPLIT = DecodeConfig(tile=64, num_warps=4, num_stages=3, ctas_per_sm=1, min_tiles=1000)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("config", [None, ONE_SPLIT, MANY_SPLITS])
@pytest.mark.parametrize(
    "shape",
    [
        (32, 8, 128, [1] * 8, [1, 63, 64, 65, 300, 1000, 129, 192], ()),
        (32, 8, 128, [1], [16000], ()),
        (8, 2, 64, [1] * 5, [5, 128, 640, 1, 77], (1,)),
        (8, 8, 128, [1, 1], [4000, 3], ()),
        (28, 4, 128, [1, 1, 1], [40, 500, 9000], (0,)),
        (16, 1, 64, [1] * 3, [30, 64, 3000], ()),
        (32, 8, 128, [3, 1, 4, 2], [3, 64, 700, 1500], (1,)),
        (8, 4, 64, [8, 5], [700, 66], ()),
        (16, 8, 128, [1] * (FEW_ROWS + 1), lengths(FEW_ROWS + 1, 700), (0, 5)),
        (32, 8, 128, [1] * 300, lengths(300, 900), (3, 77, 299)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_reference(shape: Shape, dtype: torch.dtype, config: DecodeConfig | None) -> None:
    """What no row may read is NaN; twice the same bits; padding is left as it is."""
    batch = hopper_batch(shape, dtype)
    q, kv, *_ = batch.tensors
    assert decode_by_wgmma(q, kv, max(batch.q_lens))
    check_decode(batch, config)


@pytest.mark.gpu
@on_hopper
def test_pages_may_lie_apart() -> None:
    """A layer's cache is a part of a larger tensor's pages."""
    batch = Batch([1] * 4, [70, 200, 64, 1], 32, 8, 128, 64, (), torch.bfloat16, "cuda")
    spread_pages(batch)
    check_decode(batch)


@pytest.mark.gpu
@on_hopper
def test_this_step_s_keys_are_read_once_they_are_written() -> None:
    """The kernel before writes them, and this one begins beside it: wherever in its page a row's last key lies, alone
    in it or the one that fills it, what the page held there before (NaN) reaches nobody."""
    ends = [1, 2, 63, 64, 65, 127, 128, 129, 640, 641]
    batch = Batch([1] * len(ends), ends, 32, 8, 128, 64, (), torch.bfloat16, "cuda")
    _, kv, table, slots, cu, contexts = batch.tensors
    last = contexts.long() - 1
    pages = table[slots.long(), last // 64].long()
    places, positions = pages * 64 + last % 64, last.int()
    qkv = torch.randn(len(ends), 48 * 128, device="cuda").to(torch.bfloat16)
    plan = DecodePlan.allocate(len(ends), 32, 8, 128, device="cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        plan.plan(slots, contexts)
        q = rope_kv(qkv, kv, places, positions, None, heads=32)
        return q, paged_decode(q, kv, table, plan)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q, out = step()
    for _ in range(50):
        kv[pages, :, :, last % 64] = torch.nan
        graph.replay()
        assert_close(out, paged_attention_reference(q, kv, table, slots, cu, contexts))


def kernel_of(q: torch.Tensor, kv: torch.Tensor, *, max_q: int = 1, window: int = 0, softcap: float = 0.0) -> str:
    """The kernel of such a launch."""
    _, heads, head_dim = q.shape
    plan = DecodePlan.allocate(8, heads, kv.shape[2], head_dim, max_q=max_q, window=window, device="meta", target=H200)
    table = torch.empty(16, 4, dtype=torch.int32, device="meta")
    launch = paged_decode_launch(q, kv, table, plan, scale=None, softcap=softcap, sinks=None, out=q)
    return str(launch.kernel.fn.__name__)


def test_only_plain_attention_of_16_bits_in_pages_of_64_on_hopper() -> None:
    """All else is the portable kernel's."""
    q, kv = meta(8, 32, 128), meta(9, 2, 8, 64, 128)
    with pretended(H200):
        assert kernel_of(q, kv) == "hopper_decode_kernel"
        assert kernel_of(q, kv, max_q=4) == "hopper_decode_kernel"
        portable = "paged_decode_kernel"
        assert kernel_of(q, kv, max_q=5) == portable
        assert kernel_of(q, kv, window=100) == portable
        assert kernel_of(q, kv, softcap=30.0) == portable
        assert kernel_of(q, meta(9, 2, 8, 32, 128)) == portable
        assert kernel_of(q, meta(9, 2 * 8 * 64 * 128 + 4)[:, :-4].view(9, 2, 8, 64, 128)) == portable
        assert kernel_of(meta(8, 32, 96), meta(9, 2, 8, 64, 96)) == portable
        assert kernel_of(q.float(), kv.float()) == portable
        assert not decode_by_wgmma(q, kv.to(torch.float8_e4m3fn), 1)
    for target in (Target(80, 108), Target(100, 148)):
        with pretended(target):
            assert kernel_of(q, kv) == portable


def splits_of(contexts: list[int], device: str, padding: int = 0) -> list[int]:
    """Into how many each row is cut on an H200, whose config is llama-8b's."""
    rows = len(contexts)
    config = decode_config(H200, 128, 2)
    plan = DecodePlan.allocate(rows + padding, 32, 8, 128, device=device, target=H200, config=config)
    plan.plan(int32([*range(rows), *[-1] * padding], device), int32([*contexts, *[0] * padding], device))
    splits = {item[6]: item[0] for item in plan.items.tolist() if item[0]}  # by the row's first query
    assert sum(item[0] > 0 for item in plan.items.tolist()) == sum(splits.values())
    assert max(item[7] for item in plan.items.tolist()) + max(splits.values()) <= len(plan.partial)
    return [splits[row] for row in range(rows)]


def test_rows_are_cut_into_long_pieces_or_to_one_a_multiprocessor(device: str) -> None:
    """16 programs a kv head fill the device once, 33 twice."""
    assert splits_of([32768], device) == [16]
    assert splits_of([2048], device) == [16]
    assert splits_of([3000] * 8, device) == [3] * 8  # 16 tiles, not 12 as 33 programs or 24 as 16 of them would have
    assert splits_of([700] * 8, device) == [2] * 8  # 6 tiles, not 3
    assert splits_of([20000] * 8, device) == [5] * 8  # 76 tiles at most
    assert splits_of([256] * 64, device) == [1] * 64
    for contexts in ([32768], [20000], [2048], [3000, 20000]):
        assert splits_of(contexts, device) == splits_of(contexts, device, padding=3)
