"""The torch backend against attention written out, and against itself in other batches, in float64."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.paged_decoding import PagedDecoding, uneven_chunks
from tests.support.specs import layer_spec, model_spec
from thranite.attention import row_plan
from thranite.attention.base import AttentionBatch, KVCache
from thranite.attention.page_gather import PageGather
from thranite.attention.torch import TorchAttention
from thranite.engine.kv_groups import plan_kv_layout
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.spec import LayerSpec, ModelSpec, RopeSpec

CPU = torch.device("cpu")
LENGTHS = [61, 17, 40]
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"window": 7},
    "softcap": {"softcap": 2.0},
    "window-softcap": {"window": 20, "softcap": 1.5},
    "no-rope": {"rope": None},
    "mha": {"num_kv_heads": 4},
    "mqa": {"num_kv_heads": 1},
}


def spec_with(**changes: Any) -> ModelSpec:
    layer = dataclasses.replace(layer_spec(), **changes)
    spec = model_spec(layer, dataclasses.replace(layer, window=None), layer, vocab=97, positions=256, dtype="float64")
    rope = RopeSpec(12, tuple(0.5**i for i in range(6)), 1.1)  # 4 of 16 dimensions pass unrotated
    return dataclasses.replace(spec, ropes=(rope,))


def decoder_of(spec: ModelSpec) -> Decoder:
    decoder = load_model(spec, None, dtype=torch.float64, device=CPU, load_format="dummy")
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(15.0)
    return decoder


def sequences(lengths: list[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(97) for _ in range(length)] for length in lengths]


def by_hand(layer: LayerSpec, rope: RopeSpec, qkv: Tensor, norms: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """One sequence, one query at a time. qkv [T, heads + 2 * kv_heads, head_dim]."""
    heads, kv_heads = layer.num_heads, layer.num_kv_heads
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    q, k = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w for x, w in zip((q, k), norms, strict=True))
    q, k = rotated(rope, q), rotated(rope, k)
    out = torch.empty_like(q)
    for t in range(qkv.shape[0]):
        first = 0 if layer.window is None else max(0, t - layer.window + 1)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = k[first : t + 1, shared] @ q[t, head] * layer.scale
            if layer.softcap is not None:
                scores = layer.softcap * torch.tanh(scores / layer.softcap)
            out[t, head] = scores.softmax(0) @ v[first : t + 1, shared]
    return out.flatten(1)


def rotated(rope: RopeSpec, x: Tensor) -> Tensor:
    half = rope.rotary_dim // 2
    angles = torch.arange(x.shape[0], dtype=x.dtype)[:, None, None] * torch.tensor(rope.inv_freq, dtype=x.dtype)
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def paged_batch(length: int, start: int, block_size: int) -> AttentionBatch:
    """One row: tokens `start` to `length` of a sequence whose page i is page i + 1."""
    positions = torch.arange(start, length)
    table = torch.arange(1, -(-length // block_size) + 1, dtype=torch.int32)[None]
    return AttentionBatch(
        positions=positions,
        query_starts=torch.tensor([0, length - start], dtype=torch.int32),
        context_lens=torch.tensor([length], dtype=torch.int32),
        slots=torch.tensor([0], dtype=torch.int32),
        block_tables=(table, table),
        slot_mappings=(positions + block_size, positions + block_size),
        host_query_starts=[0, length - start],
        host_context_lens=[length],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["full", "window", "softcap", "window-softcap", "mqa"])
def test_equals_attention_by_hand(kind: str, dtype: torch.dtype) -> None:
    spec = spec_with(**KINDS[kind])
    layer, block_size = spec.layers[0], 4
    cache = KVCache(plan_kv_layout(spec, block_size, str(dtype).removeprefix("torch.")), 16, CPU)
    backend = TorchAttention(spec, cache)
    torch.manual_seed(0)
    width = layer.num_heads + 2 * layer.num_kv_heads
    qkv = torch.randn(30, width, layer.head_dim, dtype=dtype)
    q_norm, k_norm = (torch.rand(layer.head_dim, dtype=dtype) + 0.5 for _ in range(2))
    expected = by_hand(layer, spec.ropes[0], qkv.double(), (q_norm.double(), k_norm.double()), spec.norm_eps)
    parts = [
        backend.attend(0, qkv[a:b].flatten(1).clone(), paged_batch(b, a, block_size), q_norm, k_norm)
        for a, b in ((0, 11), (11, 29), (29, 30))
    ]
    actual = torch.cat(parts)
    assert actual.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module", params=list(KINDS))
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(spec_with(**KINDS[request.param]))


@settings(max_examples=12, deadline=None)
@given(block_size=st.sampled_from([1, 3, 4, 16, 32]), seed=st.integers(0, 10**6), query_block=st.sampled_from([5, 256]))
def test_any_blocks_chunks_and_company(decoder: Decoder, block_size: int, seed: int, query_block: int) -> None:
    prompts = sequences(LENGTHS, seed)
    alone = [PagedDecoding(decoder, 64, slots=1).step([(0, prompt)])[0] for prompt in prompts]
    source = random.Random(seed)
    chunks = uneven_chunks(LENGTHS, [source.randrange(1, length) for length in LENGTHS], seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_plan, "QUERY_BLOCK", query_block)
        together = PagedDecoding(decoder, block_size, seed=seed).run(prompts, chunks)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_neighbour_of_nan_changes_nothing(decoder: Decoder) -> None:
    prompts = sequences([20, 33])
    clean = PagedDecoding(decoder, 16, seed=1)
    before = clean.run(prompts, [[12, 1, 7], [30, 1, 2]])
    dirty = PagedDecoding(decoder, 16, seed=1)
    torch.set_grad_enabled(False)
    try:
        for layer in range(3):
            dirty.cache.layer(layer)[1][0] = math.inf  # the null page
        after = dirty.run(prompts, [[12, 1, 7], [30, 1, 2]])
    finally:
        torch.set_grad_enabled(True)
    for a, b in zip(before, after, strict=True):
        assert torch.isfinite(b).all()
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)


def test_pages_are_used_again(decoder: Decoder) -> None:
    """A page that held another sequence's tokens shows none of them to its next owner."""
    first, second = sequences([50, 37])
    paged = PagedDecoding(decoder, 16, slots=1, max_len=64)
    paged.step([(0, first)])
    paged.release(0)
    again = torch.cat([paged.step([(0, part)])[0] for part in (second[:20], second[20:21], second[21:])])
    fresh = PagedDecoding(decoder, 16, slots=1).step([(0, second)])[0]
    torch.testing.assert_close(again, fresh, rtol=1e-9, atol=1e-9)


def test_layers_of_different_heads_share_a_pool() -> None:
    """Pages padded to another group's size, by less than whole runs of keys."""
    wide, narrow = layer_spec(head_dim=20, kv_heads=2), layer_spec(head_dim=12, kv_heads=4)
    spec = model_spec(wide, narrow, vocab=97, positions=256, dtype="float64")
    ropes = (RopeSpec(12, tuple(0.5**i for i in range(6))),)
    decoder = decoder_of(dataclasses.replace(spec, ropes=ropes))
    layout = plan_kv_layout(decoder.spec, 3, "float64")
    cache = KVCache(layout, 8, CPU)
    assert PageGather.of(cache.layer(0)[1]).parts > 1
    prompts = sequences(LENGTHS)
    together = PagedDecoding(decoder, 3).run(prompts, uneven_chunks(LENGTHS, [9, 9, 9]))
    for tokens, actual in zip(prompts, together, strict=True):
        expected = PagedDecoding(decoder, 64, slots=1).step([(0, tokens)])[0]
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_a_cache_of_lower_precision_does_not_see_chunks() -> None:
    """Keys are read as stored even by the step that computes them, so chunking changes nothing."""
    decoder = decoder_of(spec_with())
    tokens = sequences([40])[0]
    whole = PagedDecoding(decoder, 4, kv_dtype="float32").step([(0, tokens)])[0]
    parts = PagedDecoding(decoder, 4, kv_dtype="float32").run([tokens], [[13, 1, 20, 6]])[0]
    exact = PagedDecoding(decoder, 4).step([(0, tokens)])[0]
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)
    assert 1e-9 < (whole - exact).abs().max().item() < 1e-3
