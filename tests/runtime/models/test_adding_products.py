"""Products of many rows that add to the residual stream themselves: the same hidden states, and only where they may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.torch_engine import GEMMA3, LENGTH, LLAMA
from thranite.attention.base import AttentionBatch
from thranite.bench.shapes import LLAMA_8B
from thranite.layers import dense as dense_module
from thranite.layers import linear as linear_module
from thranite.layers.communicator import Alone
from thranite.layers.dense import add_dense, dense
from thranite.layers.linear import ADDING_ROWS, Linear, UnquantizedMethod
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.partition import Cut, whole
from thranite.models.registry import load_spec
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.target import Target

CPU = torch.device("cpu")
BATCH = cast(AttentionBatch, None)
BIASED = {**LLAMA, "attention_bias": True}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


class NoAttention:
    """Something of q, k and v that tells the layers and the tokens apart."""

    def __init__(self, heads: int = 64, kv_heads: int = 32) -> None:
        self._sizes = [heads, kv_heads, kv_heads]

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        q, k, v = qkv.split(self._sizes, -1)
        attended: Tensor = q * torch.cat([k, v] * (q.shape[1] // (2 * k.shape[1])), -1).sin() + layer
        return attended


class Counted(UnquantizedMethod):
    """Knows for how many rows linears have added."""

    def __init__(self) -> None:
        self.added: list[int] = []

    def add(self, linear: Linear, x: Tensor, stream: Tensor) -> bool:
        self.added.append(len(x))
        return super().add(linear, x, stream)


@pytest.fixture(autouse=True)
def gradient_free() -> Iterator[None]:
    with torch.inference_mode():
        yield


def model_of(config: dict[str, Any]) -> tuple[Decoder, Counted]:
    spec = load_spec(config, dtype="float32", max_model_len=LENGTH)
    torch.manual_seed(0)
    model = load_model(spec, None, dtype=torch.float32, device=CPU, load_format="dummy", progress=None)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    counted = Counted()
    for module in model.modules():
        if isinstance(module, Linear):
            module.method = counted
    return model, counted


@pytest.mark.parametrize(
    ("config", "adding"),
    [(LLAMA, 2), (QWEN3, 2), (BIASED, 1), (GEMMA3, 0)],
    ids=["llama", "qwen3", "a bias", "norms between"],
)
@pytest.mark.parametrize("read", [None, 3, 1500], ids=["all rows", "few rows", "most rows"])
def test_equals_products_and_additions(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], adding: int, read: int | None
) -> None:
    """Two layers of `adding` products that add; of the last one, only the read rows are computed where they are few."""
    model, counted = model_of(config)
    count = ADDING_ROWS + 6 if read is None or read < ADDING_ROWS else 2 * ADDING_ROWS
    ids = torch.arange(count) * 7 % 131
    rows = None if read is None else torch.arange(read) * 5 % count
    backend = NoAttention(*((64, 32) if adding else (64, 16)))
    ours = model(ids, BATCH, backend, rows)
    whole_layers = len(model.layers) - (read == 3)
    expected_rows = [count] * (adding * whole_layers)
    if read == 1500 and adding:  # fewer than three of four: the last layer has them alone
        expected_rows[-adding:] = [1500] * adding
    assert counted.added == expected_rows
    monkeypatch.setattr(linear_module, "ADDING_ROWS", count + 1)
    counted.added.clear()
    apart = model(ids, BATCH, backend, rows)
    assert counted.added == []
    assert float(apart.std()) > 0.5
    torch.testing.assert_close(ours, apart, rtol=1e-4, atol=1e-4)


def test_fewer_rows_are_left_to_the_norm() -> None:
    model, counted = model_of(LLAMA)
    model(torch.arange(ADDING_ROWS - 1) % 131, BATCH, NoAttention())
    assert counted.added == []
    model(torch.arange(ADDING_ROWS) % 131, BATCH, NoAttention())
    assert len(counted.added) == 4


class Two(Alone):
    size = 2


@pytest.mark.parametrize("why", ["a part", "a bias", "a method that cannot"])
def test_what_a_linear_leaves(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(linear_module, "ADDING_ROWS", 4)
    inputs = Cut(0, 4, 8) if why == "a part" else whole(4)
    method = UnquantizedMethod()
    linear = Linear(
        inputs, [("out", whole(3))], bias=why == "a bias", dtype=torch.float32, device=CPU, method=method,
        communicator=Two(),
    )  # fmt: skip
    for parameter in linear.parameters():
        parameter.normal_()
    if why == "a method that cannot":
        monkeypatch.setattr(method, "add", lambda *_: False)
    x, stream = torch.randn(4, 4), torch.randn(4, 3)
    before = stream.clone()
    left = linear.add_to(stream, x)
    assert left is not None
    assert torch.equal(left, linear(x))
    assert torch.equal(stream, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    """The reference has more bits than fp64, whose two ways differ in the last one by what the processor offers."""
    x, weight, stream = (torch.randn(size).to(dtype) for size in ((400, 64), (24, 64), (400, 24)))
    exact = extended(stream) + extended(x) @ extended(weight).T
    rounded_twice = stream + dense(x, weight)
    add_dense(x, weight, stream)
    torch.testing.assert_close(stream, torch.from_numpy(exact.astype(np.float64)).to(dtype))
    error, other = (float(np.linalg.norm((extended(y) - exact).astype(np.float64))) for y in (stream, rounded_twice))
    assert error <= 1.1 * other


def extended(x: Tensor) -> np.ndarray:
    return x.double().numpy().astype(np.longdouble)


def test_a_gpu_s_products_that_add_are_those_chosen_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an A100 without values: llama-8b's out and down get the stream, which the norms read, the others do not."""
    spec = load_spec({**LLAMA_8B, "num_hidden_layers": 2}, dtype="bfloat16", max_model_len=LENGTH)
    asked: list[tuple[int, int, int, int | None]] = []
    streams: list[int] = []

    def chosen(x: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor | None:
        asked.append((len(x), *weight.shape, None if onto is None else id(onto)))
        return onto

    with pretended_gpu(Target(80, 108)):
        model = Decoder(spec, torch.bfloat16, DEVICE)
        embed = model.embedding.forward
        monkeypatch.setattr(dense_module, "tuned_product", chosen)
        monkeypatch.setattr(model.embedding, "forward", lambda ids: keep(embed(ids), streams))
        backend = NoAttention(4096, 1024)
        for count in (ADDING_ROWS, ADDING_ROWS - 1):
            model(torch.zeros(count, dtype=torch.int64, device=DEVICE), BATCH, backend)
    layer = [(6144, 4096, False), (4096, 4096, True), (28672, 4096, False), (4096, 14336, True)]
    expected = [
        (count, n, k, stream if adds and count >= ADDING_ROWS else None)
        for count, stream in zip((ADDING_ROWS, ADDING_ROWS - 1), streams, strict=True)
        for n, k, adds in layer * 2
    ]
    assert asked == expected


def keep(stream: Tensor, streams: list[int]) -> Tensor:
    streams.append(id(stream))
    return stream
