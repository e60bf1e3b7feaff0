"""rms_norm and glu against their references, odd widths and strided rows included."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.glu import Activation, glu, glu_reference
from thranite_kernels.rms_norm import rms_norm, rms_norm_reference
from thranite_kernels.testing import assert_close

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 431), (7, 1024)])
@pytest.mark.parametrize(("residual", "one_plus"), [(False, False), (True, False), (True, True)])
def test_rms_norm(device: str, dtype: torch.dtype, rows: int, width: int, residual: bool, one_plus: bool) -> None:
    """Output and residual stream, with and without the (1 + w) form."""
    x = torch.randn(rows, width, dtype=dtype, device=device)
    weight = torch.randn(width, dtype=dtype, device=device)
    stream = torch.randn(rows, width, dtype=dtype, device=device) if residual else None
    expected, added = rms_norm_reference(x, weight, residual=stream, one_plus=one_plus)
    actual = rms_norm(x, weight, residual=stream, one_plus=one_plus)
    assert_close(actual, expected)
    if added is not None and stream is not None:
        assert_close(stream, added, name="residual")  # the interpreter truncates to bf16, so not bit for bit


@pytest.mark.parametrize(("parts", "rows", "width"), [(2, 3, 96), (3, 2, 1000)])
def test_rms_norm_adds_parts(device: str, parts: int, rows: int, width: int) -> None:
    """A product's halves: their sum is rounded as the product's result would be, before the stream is added."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    x, weight = torch.randn(parts, rows, width, device=device), torch.randn(width, device=device).to(dtype)
    stream = torch.randn(rows, width, device=device).to(dtype)
    expected, added = rms_norm_reference(x, weight, residual=stream)
    same, _ = rms_norm_reference(x.sum(0).to(dtype), weight, residual=stream)
    actual = rms_norm(x, weight, residual=stream)
    assert_close(actual, expected)
    assert torch.equal(expected, same)
    assert added is not None
    assert torch.equal(stream, added)


def test_rms_norm_reads_strided_rows(device: str) -> None:
    """A slice of a wider projection, as full-width q/k norms need it."""
    wide = torch.randn(5, 300, device=device)
    weight = torch.randn(96, device=device)
    out = rms_norm(wide[:, 128:224], weight, eps=1e-5)
    assert_close(out, rms_norm_reference(wide[:, 128:224], weight, eps=1e-5)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (3, 1431)])
def test_glu(device: str, dtype: torch.dtype, kind: Activation, rows: int, width: int) -> None:
    """Three activations; values far from zero stay finite."""
    x = torch.randn(rows, 2 * width, dtype=dtype, device=device) * 4
    x[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -30.0], dtype=dtype, device=device)
    actual = glu(x, kind)
    assert bool(actual.isfinite().all())
    assert_close(actual, glu_reference(x, kind))
