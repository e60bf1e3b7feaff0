"""Layers of fused products compute what the layers do, and take only what they are for."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.torch_engine import GEMMA3, LENGTH, LLAMA
from thranite.attention.base import AttentionBackend, AttentionBatch
from thranite.layers.communicator import ALONE, Alone
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels import fused_gemm
from thranite_kernels.fused_gemm import NormTerms, gemm_add_reference, norm_gemm_reference
from thranite_kernels.target import Target

QWEN2: dict[str, Any] = {
    **LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 3,
    "attention_bias": True,
}  # fmt: skip
BATCH = cast(AttentionBatch, None)


class NoAttention:
    """Something of q, k and v that tells the layers apart."""

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        q, k, v = qkv.split([64, 32, 32], -1)
        attended: Tensor = q * torch.cat([k, v], -1).sin() + layer
        return attended


def gemm_add(x: Tensor, weight: Tensor, h: Tensor, norm: Tensor, scratch: object, *, bias: Tensor | None) -> NormTerms:
    stream, scaled, squares = gemm_add_reference(x, weight, h, norm, bias)
    h.copy_(stream)
    return NormTerms(scaled, squares[:, None])


@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama", "biases"])
@torch.inference_mode()
def test_equals_the_layers(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """With the kernels' references on the CPU."""
    spec = load_spec(config, dtype="float64", max_model_len=LENGTH)
    torch.manual_seed(0)
    model = load_model(spec, None, dtype=torch.float64, device=torch.device("cpu"), load_format="dummy", progress=None)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)  # norms too, and biases
    monkeypatch.setattr(fused_gemm, "gemm_add", gemm_add)
    monkeypatch.setattr(fused_gemm, "norm_gemm", norm_gemm_reference)
    backend: AttentionBackend = NoAttention()
    ids = torch.arange(20)
    ordinary = model(ids, BATCH, backend)
    stream = model.embedding(ids)
    assert model.fused is not None
    model.fused.run(stream, BATCH, backend)
    torch.testing.assert_close(model.norm(stream), ordinary, rtol=1e-5, atol=1e-5)


class Two(Alone):
    size = 2


@pytest.mark.parametrize(
    ("config", "dtype", "communicator", "takes"),
    [
        (LLAMA, "bfloat16", ALONE, True),
        (QWEN2, "bfloat16", ALONE, True),
        (LLAMA, "float16", ALONE, False),
        (LLAMA, "float32", ALONE, False),
        (LLAMA, "bfloat16", Two(), False),
        ({**LLAMA, "intermediate_size": 200_000}, "bfloat16", ALONE, False),
        (GEMMA3, "bfloat16", ALONE, False),
    ],
)
def test_takes(config: dict[str, Any], dtype: str, communicator: Alone, takes: bool) -> None:
    """33 to 64 rows, small weights in bf16, one rank, no norm of what is added."""
    spec = load_spec(config, dtype=dtype, max_model_len=LENGTH)
    with pretended_gpu(Target(90, 132)):
        model = Decoder(spec, getattr(torch, dtype), DEVICE, communicator=communicator)
        taken = [
            rows
            for rows in (1, 32, 33, 64, 65, 256)
            if model.fused is not None and model.fused.takes(torch.empty(rows, 32, dtype=model.dtype, device=DEVICE))
        ]
    assert taken == ([33, 64] if takes else [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("rows", [33, 50, 64])
@torch.inference_mode()
def test_kernels_equal_the_layers(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Both ways in bf16 against the layers in float64."""
    spec = load_spec(QWEN2, dtype="bfloat16", max_model_len=LENGTH)
    device = torch.device("cuda", 0)
    where: dict[str, Any] = {"device": device, "load_format": "dummy", "progress": None}
    torch.manual_seed(0)
    model = load_model(spec, None, dtype=torch.bfloat16, **where)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    exact = load_model(spec, None, dtype=torch.float64, **where)
    exact.load_state_dict(model.state_dict())
    backend: AttentionBackend = NoAttention()
    ids = torch.arange(rows, device=device) % spec.vocab_size
    expected = exact(ids, BATCH, backend)
    assert model.fused is not None
    assert model.fused.takes(model.embedding(ids))
    fused = model(ids, BATCH, backend)
    monkeypatch.setattr(model.fused, "takes", lambda x: False)
    ordinary = model(ids, BATCH, backend)
    errors = [float((hidden.double() - expected).norm() / expected.norm()) for hidden in (fused, ordinary)]
    assert errors[0] <= 1.3 * errors[1] < 0.1, errors
