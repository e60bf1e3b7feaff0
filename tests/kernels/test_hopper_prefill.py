"""paged_prefill on Hopper against the float64 reference on a GPU: ragged prompts, chunks, groups; and what it takes.

Its kernel is Gluon's, which no interpreter runs.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.hopper import H200, meta, on_hopper
from tests.support.paged_batch import Batch, Shape, hopper_batch, lengths, spread_pages
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.paged_prefill import PrefillPlan, paged_prefill, paged_prefill_launch, plan_config
from thranite_kernels.target import PrefillConfig, Target, prefill_config, pretended
from thranite_kernels.testing import assert_close


def plan_of(batch: Batch, spare: int = 0) -> PrefillPlan:
    """Filled, with room for `spare` tokens more, as graphs have it."""
    q, kv, _, slots, cu, contexts = batch.tensors
    config = plan_config(kv, batch.heads, q.dtype)
    assert config.wgmma
    plan = PrefillPlan.allocate(
        len(batch.q_lens), len(q) + spare, batch.heads, batch.kv_heads, config=config, device="cuda"
    )
    plan.items.fill_(-7)
    plan.plan(slots, contexts, cu)
    return plan


def check(batch: Batch) -> None:
    """Two layers by one plan: the same bits, and the record that counts is as it was."""
    q, kv, table, slots, cu, contexts = batch.tensors
    plan = plan_of(batch)
    outs = [torch.full_like(q, 7.0) for _ in range(2)]
    for out in outs:
        paged_prefill(q, kv, table, plan, out=out)
    assert torch.equal(outs[0], outs[1])
    assert plan.items[-1, :3].tolist() == [0, 0, int((plan.items[:-1, 0] > 0).sum())]
    assert_close(outs[0], paged_attention_reference(q, kv, table, slots, cu, contexts))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(
    "shape",
    [
        (32, 8, 128, [5, 70, 1, 300, 64], [5, 100, 900, 300, 640], ()),
        (32, 8, 128, [1, 1, 0, 2, 31, 32, 33], [1, 64, 9, 65, 31, 128, 4000], ()),
        (16, 8, 128, [33, 200, 64], [97, 201, 64], (1,)),
        (8, 8, 128, [65, 64, 129], [65, 640, 129], ()),
        (64, 1, 128, [3, 40], [3, 500], ()),
        (32, 8, 64, [129, 1000], [129, 1500], ()),
        (8, 4, 64, [63, 64, 65, 7], [63, 64, 65, 2000], (0,)),
        (16, 1, 64, [17, 90], [300, 90], ()),
        (28, 4, 128, [5, 70, 1, 300, 64], [5, 100, 900, 300, 640], ()),
        (14, 2, 64, [129, 17], [129, 500], (1,)),
        (30, 2, 128, [70, 9], [70, 300], ()),
        (32, 8, 128, [3000], [5000], ()),
        (32, 8, 128, lengths(40, 200), [n + 50 for n in lengths(40, 200)], (3, 39)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_reference(shape: Shape, dtype: torch.dtype) -> None:
    """What no row may read is NaN."""
    check(hopper_batch(shape, dtype))


@pytest.mark.gpu
@on_hopper
def test_pages_and_queries_may_lie_apart() -> None:
    """A layer's cache is a part of a larger tensor's pages, the queries the first heads of wider rows."""
    batch = Batch([70, 200], [70, 264], 32, 8, 128, 64, (), torch.bfloat16, "cuda")
    spread_pages(batch)
    q, *rest = batch.tensors
    wide = torch.full((len(q), 48, 128), torch.nan, dtype=q.dtype, device="cuda")
    wide[:, :32] = q
    batch.tensors = (wide[:, :32], *rest)
    check(batch)


@pytest.mark.gpu
@on_hopper
def test_tokens_that_no_row_names_are_left() -> None:
    """Neighbours in a tile of queries: NaN there reaches nobody, and their output stays."""
    batch = Batch([40, 50], [40, 500], 32, 8, 128, 64, (), torch.bfloat16, "cuda")
    q, kv, table, slots, cu, contexts = batch.tensors
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts)
    longer = torch.full((len(q) + 100, *q.shape[1:]), torch.nan, dtype=q.dtype, device="cuda")
    longer[: len(q)] = q
    out = torch.full_like(longer, 7.0)
    paged_prefill(longer, kv, table, plan_of(batch, spare=100), out=out)
    assert_close(out[: len(q)], expected)
    assert bool((out[len(q) :] == 7.0).all())


@pytest.mark.gpu
@on_hopper
def test_a_graph_serves_any_lengths() -> None:
    """A replay has the bits of a run."""
    batch = Batch([150, 60], [150, 700], 32, 8, 128, 64, (), torch.bfloat16, "cuda")
    q, kv, table, slots, cu, contexts = batch.tensors
    plan, out = plan_of(batch), torch.empty_like(q)
    paged_prefill(q, kv, table, plan, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.plan(slots, contexts, cu)
        paged_prefill(q, kv, table, plan, out=out)
    for first, context in ((150, 150), (30, 100), (1, 130)):
        cu[1] = first
        contexts[0] = context
        contexts[1] = 210 - first
        graph.replay()
        eager = torch.empty_like(q)
        fresh = plan_of(batch)
        paged_prefill(q, kv, table, fresh, out=eager)
        assert torch.equal(out, eager)


def kernel_of(q: torch.Tensor, kv: torch.Tensor, config: PrefillConfig) -> str:
    """The kernel of such a launch."""
    plan = PrefillPlan.allocate(8, 64, q.shape[1], kv.shape[2], config=config, device="meta")
    table = torch.empty(16, 4, dtype=torch.int32, device="meta")
    launch = paged_prefill_launch(
        q, kv, table, plan, scale=None, window=0, softcap=0.0, sinks=None, out=q, descriptor=None
    )
    return str(launch.kernel.fn.__name__)


def test_only_plain_attention_of_16_bits_in_pages_of_64_on_hopper() -> None:
    """All else is the portable kernel's, which takes any plan of its own."""
    q, kv = meta(64, 32, 128), meta(9, 2, 8, 64, 128)
    with pretended(H200):
        config = plan_config(kv, 32, q.dtype)
        assert kernel_of(q, kv, config) == "hopper_prefill_kernel"
        portable = prefill_config(H200, 128, 2)
        assert kernel_of(q, kv, portable) == "paged_prefill_kernel"
        assert plan_config(kv, 32, q.dtype, window=100) == portable
        assert plan_config(kv, 32, q.dtype, softcap=30.0) == portable
        assert plan_config(kv, 32, q.dtype, sinks=True) == portable
        for group in (3, 6, 13):
            assert plan_config(kv, 8 * group, q.dtype) == portable
        for group in (7, 15):
            assert plan_config(kv, 8 * group, q.dtype) == config
        assert plan_config(meta(9, 2, 8, 32, 128), 32, q.dtype) == portable
        assert plan_config(meta(9, 2 * 8 * 64 * 128 + 4)[:, :-4].view(9, 2, 8, 64, 128), 32, q.dtype) == portable
        assert not plan_config(meta(9, 2, 8, 64, 96), 32, q.dtype).wgmma
        assert plan_config(kv, 32, torch.float16) == portable
        assert not plan_config(kv.float(), 32, torch.float32).wgmma
    for target in (Target(80, 108), Target(100, 148)):
        with pretended(target):
            assert not plan_config(kv, 32, q.dtype).wgmma


def test_a_plan_for_other_attention_is_refused() -> None:
    """Its blocks of queries are not the other kernel's."""
    q, kv, table = meta(64, 32, 128), meta(9, 2, 8, 64, 128), torch.empty(16, 4, dtype=torch.int32, device="meta")
    with pretended(H200):
        plan = PrefillPlan.allocate(8, 64, 32, 8, config=plan_config(kv, 32, q.dtype), device="meta")
        with pytest.raises(ValueError, match="plan_config"):
            paged_prefill(q, kv, table, plan, window=16)
        with pytest.raises(ValueError, match="type"):
            paged_prefill(q.half(), kv, table, plan)
        with pytest.raises(ValueError, match="positive"):
            paged_prefill(q, kv, table, plan, scale=-1.0)
        with pytest.raises(ValueError, match="another cache"):
            paged_prefill(q, meta(9, 2, 8, 32, 128), table, plan)
        with pytest.raises(ValueError, match="numbers of heads"):
            paged_prefill(q[:, :16], kv, table, plan)
