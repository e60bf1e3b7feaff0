"""A layer of a model with large weights: by the project's products and by the library's."""

from __future__ import annotations

import pytest
import torch

from thranite.bench.shapes import LLAMA_8B
from thranite.layers import dense, gated_products
from thranite.layers.tuned_products import tuning
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import DecoderLayer
from thranite.models.registry import load_spec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

LLAMA = {**LLAMA_8B, "num_hidden_layers": 1, "vocab_size": 4000}


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@torch.inference_mode()
def results(layer: DecoderLayer, x: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k and v of the normalised stream; the stream after all that follows attention, normalised once more."""
    stream = x.clone()
    qkv = layer.attention.qkv(layer.attention_norm(stream))
    added = layer.after_attention(stream, heads)
    return qkv, layer.attention_norm.after_adding(added, stream)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 13, 16, 17, 33, 64, 65])
def test_few_rows_are_multiplied_as_the_library_does(rows: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart by rounding. On Hopper gate, up and down have the project's kernel from 1 row on, the others from 17 on."""
    spec, device = load_spec(LLAMA, dtype=dtype, max_model_len=1024), torch.device("cuda", 0)
    model = load_model(spec, None, dtype=getattr(torch, dtype), device=device, load_format="dummy", progress=None)
    layer = model._in_order[0]
    x, heads = (torch.randn(rows, 4096, device=device).to(getattr(torch, dtype)) for _ in range(2))
    taken = []
    product = dense._hopper_product

    def counted(x: torch.Tensor, weight: torch.Tensor, **kinds: bool) -> torch.Tensor | None:
        result = product(x, weight, **kinds)
        taken.append(result is not None)
        return result

    with monkeypatch.context() as ours:
        ours.setattr(dense, "_hopper_product", counted)
        actual = results(layer, x, heads)
    with monkeypatch.context() as theirs:
        theirs.setattr(dense, "_hopper_product", lambda *args, **kinds: None)
        theirs.setattr(dense, "few_rows", lambda *args: None)
        expected = results(layer, x, heads)
    assert all(relative(*pair) < 2e-2 for pair in zip(actual, expected, strict=True))
    hopper = torch.cuda.get_device_capability() == (9, 0)
    assert sum(taken) == ((2 if rows <= 16 else 4) if hopper and rows <= 64 else 0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [65, 128, 129, 1000, 1024, 1500, 2100])
def test_many_rows_are_gated_as_the_library_does(rows: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are timed or not."""
    spec, device = load_spec(LLAMA, dtype=dtype, max_model_len=1024), torch.device("cuda", 0)
    model = load_model(spec, None, dtype=getattr(torch, dtype), device=device, load_format="dummy", progress=None)
    mlp = model._in_order[0].mlp
    x = torch.randn(rows, 4096, device=device).to(getattr(torch, dtype))
    monkeypatch.setattr(gated_products, "_faster", {})
    untimed = mlp.inner(x)
    with tuning():
        timed = mlp.inner(x)
    chosen = dict(gated_products._faster)
    assert len(chosen) == (torch.cuda.get_device_capability() == (9, 0))
    for faster in (True, False):
        gated_products._faster.update(dict.fromkeys(chosen, faster))
        assert all(relative(each, mlp.inner(x)) < 2e-3 for each in (untimed, timed))
