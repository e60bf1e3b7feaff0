"""Every way of multiplying gives the same product."""

from __future__ import annotations

import pytest
import torch

from thranite.layers import dense as module
from thranite.layers.dense import SKINNY_GPU_ROWS, SKINNY_ROWS, comparable, dense


@pytest.mark.parametrize("amd", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, SKINNY_ROWS, SKINNY_ROWS + 1])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_linear(
    monkeypatch: pytest.MonkeyPatch, amd: bool, rows: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "mkl_on_amd", lambda: amd)
    x, weight, bias = torch.randn(rows, shape[1]), torch.randn(shape), torch.randn(shape[0])
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    for given in (None, bias):
        result = dense(x, weight, given)
        assert result.is_contiguous()
        torch.testing.assert_close(result, torch.nn.functional.linear(x, weight, given))


@pytest.mark.parametrize(
    ("shape", "compared"),
    [((4096, 2048), True), ((28672, 4096), True), ((6144, 1024), False)],  # a rank's o and gate_up of 8B; of 0.6B
)
def test_products_of_large_weights_are_compared(shape: tuple[int, int], compared: bool) -> None:
    weight = torch.empty(shape, device="meta")
    assert comparable(torch.empty(SKINNY_GPU_ROWS + 1, shape[1], device="meta"), weight) == compared
    assert not comparable(torch.empty(SKINNY_GPU_ROWS, shape[1], device="meta"), weight)
