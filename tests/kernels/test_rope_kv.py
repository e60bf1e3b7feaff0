"""rope_kv against its reference: norms, partial rotary, odd head sizes, padding."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.rope_kv import rope_kv, rope_kv_reference
from thranite_kernels.testing import assert_close

CASES = [
    # heads, kv heads, head size, rotary (0: none), norm, one_plus, tokens
    (4, 2, 64, 64, False, False, 5),
    (3, 1, 80, 80, True, False, 3),
    (6, 3, 96, 48, True, True, 4),
    (14, 2, 64, 32, False, False, 2),
    (2, 2, 128, 0, True, False, 3),
    (1, 1, 112, 56, False, False, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary", "norm", "one_plus", "tokens"), CASES)
def test_rope_kv(
    device: str,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary: int,
    norm: bool,
    one_plus: bool,
    tokens: int,
) -> None:
    """q out, keys and values at their slots, every other element of the cache untouched."""
    block_size = 16
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
    kv = torch.randn(4, 2, kv_heads, block_size, head_dim, dtype=dtype, device=device)
    slots = torch.randperm(3 * block_size, device=device)[:tokens] + block_size
    slots[-1] = -1 if tokens > 2 else slots[-1]
    positions = torch.randint(0, 50, (tokens,), dtype=torch.int32, device=device)
    cos_sin = torch.randn(50, rotary, device=device) if rotary else None
    q_weight = torch.randn(head_dim, dtype=dtype, device=device) if norm else None
    k_weight = torch.randn(head_dim, dtype=dtype, device=device) if norm else None

    expected_q, expected_kv = rope_kv_reference(
        qkv, kv, slots, positions, cos_sin, heads=heads, q_weight=q_weight, k_weight=k_weight, one_plus=one_plus
    )
    untouched = kv.clone()
    q = rope_kv(
        qkv, kv, slots, positions, cos_sin, heads=heads, q_weight=q_weight, k_weight=k_weight, one_plus=one_plus
    )
    assert_close(q, expected_q, name="q")
    assert_close(kv, expected_kv, name="kv")
    written = torch.zeros(4, block_size, dtype=torch.bool, device=device)
    written.view(-1)[slots[slots >= 0]] = True
    same = ~written[:, None, None, :, None].expand_as(kv)
    assert torch.equal(kv[same], untouched[same])


def test_many_tokens_and_a_strided_cache(device: str) -> None:
    """The tile of four tokens, a ragged last tile, and pages that lie apart."""
    heads, kv_heads, head_dim, block_size, tokens = 2, 1, 64, 16, 515
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device)
    pages = torch.zeros(35, 3, 2, kv_heads, block_size, head_dim, device=device)
    kv = pages[:, 1]
    slots = torch.arange(tokens, device=device) + block_size
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    cos_sin = torch.randn(tokens, head_dim, device=device)
    expected_q, expected_kv = rope_kv_reference(qkv, kv, slots, positions, cos_sin, heads=heads)
    q = rope_kv(qkv, kv, slots, positions, cos_sin, heads=heads)
    assert_close(q, expected_q, name="q")
    assert_close(kv, expected_kv, name="kv")
    assert not bool(pages[:, ::2].any())
