"""gemm_add and norm_gemm against float64 and against the kernels they stand for: odd sizes, splits, bias, padding."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.fused_gemm import (
    MAX_ROWS,
    MAX_SPLIT,
    FusedScratch,
    NormTerms,
    gemm_add,
    gemm_add_reference,
    norm_gemm,
    norm_gemm_reference,
)
from thranite_kernels.glu import Activation, glu
from thranite_kernels.rms_norm import rms_norm
from thranite_kernels.target import FUSED_BOUNDS, FusedConfig, fused_config
from thranite_kernels.testing import assert_close, rms_error

EPS = 1e-6


def half(device: str) -> torch.dtype:
    """The interpreter cannot multiply bf16."""
    return torch.bfloat16 if device == "cuda" else torch.float16


def draw(device: str, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "depth", "config"),
    [
        (3, 70, 300, FusedConfig(16, 32, 64)),
        (17, 48, 512, FusedConfig(16, 16, 64, split_k=3)),
        (65, 70, 260, FusedConfig(32, 32, 64, split_k=2)),
        (16, 128, 512, None),
        (50, 64, 640, None),
        (100, 64, 640, FusedConfig(64, 32, 128, split_k=4)),
    ],
)
def test_gemm_add(device: str, low: bool, rows: int, width: int, depth: int, config: FusedConfig | None) -> None:
    """Two calls over one scratch give the same bits; the stream, the norm's terms; counters back at zero."""
    dtype = half(device) if low else torch.float32
    x, weight = draw(device, rows, depth, dtype=dtype), draw(device, width, depth, dtype=dtype, scale=depth**-0.5)
    norm, bias = draw(device, width, dtype=dtype), draw(device, width, dtype=dtype) if rows != 17 else None
    before = draw(device, rows, width, dtype=dtype)
    scratch = FusedScratch.allocate(width, device, rows=rows)
    scratch.partial.fill_(torch.nan)
    streams = [before.clone(), before.clone()]
    terms = [gemm_add(x, weight, h, norm, scratch, bias=bias, config=config) for h in streams]
    stream, scaled, squares = gemm_add_reference(x, weight, before, norm, bias)
    assert_close(streams[0], stream, name="stream")
    assert_close(terms[0].scaled, scaled, name="scaled")
    assert_close(terms[0].squares.sum(-1), squares, rms=2e-3 if low else 1e-5, peak=2e-2, name="squares")
    # Of the stream as it was rounded, to the bit and to fp32.
    assert torch.equal(terms[0].scaled, (streams[0].float() * norm.float()).to(dtype))
    assert_close(terms[0].squares.sum(-1), streams[0].double().square().sum(-1), name="squares of the stream")
    for first, second in zip((streams[0], *_parts(terms[0])), (streams[1], *_parts(terms[1])), strict=True):
        assert torch.equal(first, second)
    assert not bool(scratch.count.any())


def _parts(terms: NormTerms) -> tuple[torch.Tensor, torch.Tensor]:
    return terms.scaled, terms.squares


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("rows", "width", "depth", "config"),
    [
        (3, 70, 300, FusedConfig(16, 32, 64)),
        (33, 40, 128, FusedConfig(16, 64, 32)),
        (16, 64, 256, None),
        (60, 96, 128, None),
        (70, 96, 128, FusedConfig(64, 32, 128)),
    ],
)
def test_norm_gemm(
    device: str, low: bool, activation: Activation | None, rows: int, width: int, depth: int, config: FusedConfig | None
) -> None:
    dtype = half(device) if low else torch.float32
    terms = _terms(draw(device, rows, depth, dtype=dtype), draw(device, depth, dtype=dtype))
    weight = draw(device, width * (2 if activation else 1), depth, dtype=dtype, scale=depth**-0.5)
    bias = draw(device, len(weight), dtype=dtype) if rows != 3 else None
    out = torch.full((rows, width), torch.nan, dtype=dtype, device=device)
    result = norm_gemm(terms, EPS, weight, bias=bias, activation=activation, out=out, config=config)
    expected = norm_gemm_reference(terms, EPS, weight, bias=bias, activation=activation)
    assert result is out
    assert_close(result, expected)


def _terms(h: torch.Tensor, norm: torch.Tensor, parts: int = 3) -> NormTerms:
    squares = torch.stack([part.float().square().sum(-1) for part in h.chunk(parts, -1)], -1)
    return NormTerms((h.float() * norm.float()).to(h.dtype), squares.contiguous())


@pytest.mark.parametrize("activation", [None, "silu"])
def test_it_is_as_exact_as_the_kernels_it_stands_for(device: str, activation: Activation | None) -> None:
    """Half a layer, o_proj to the MLP's product: against float64 throughout, both from the same values."""
    dtype, rows, width = half(device), 24, 256
    x, out = draw(device, rows, 320, dtype=dtype), draw(device, width, 320, dtype=dtype, scale=320**-0.5)
    before, norm = draw(device, rows, width, dtype=dtype, scale=3), draw(device, width, dtype=dtype)
    weight = draw(device, 128, width, dtype=dtype, scale=width**-0.5)
    fused_stream = before.clone()
    terms = gemm_add(x, out, fused_stream, norm, FusedScratch.allocate(width, device))
    fused = norm_gemm(terms, EPS, weight, activation=activation)
    stream = before.clone()
    y = _product(rms_norm(_product(x, out), norm, EPS, residual=stream), weight)
    plain = y if activation is None else glu(y, activation)
    exact = before.double() + x.double() @ out.double().T
    scaled = exact * norm.double()
    expected = norm_gemm_reference(NormTerms(scaled, exact.square().sum(-1, True)), EPS, weight, activation=activation)
    assert rms_error(fused_stream, exact) <= rms_error(stream, exact)
    assert rms_error(fused, expected) <= rms_error(plain, expected) * 1.02


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """fp32 inside, rounded once, as cuBLAS does."""
    return (x.float() @ weight.float().T).to(x.dtype)


@pytest.mark.parametrize("rows", [5, 40])
def test_rows_do_not_depend_on_each_other(device: str, rows: int) -> None:
    """The same bits whatever the padding rows of a larger batch hold, infinities and NaN too."""
    dtype, width, depth = half(device), 64, 512
    x, weight = draw(device, rows + 3, depth, dtype=dtype), draw(device, width, depth, dtype=dtype)
    h, norm = draw(device, rows + 3, width, dtype=dtype), draw(device, width, dtype=dtype)
    up = draw(device, 64, width, dtype=dtype)
    scratch = FusedScratch.allocate(width, device)
    x[rows], x[rows + 1], h[rows + 2] = torch.nan, torch.inf, torch.nan
    results = []
    for count in (rows, rows + 3):
        stream = h[:count].clone()
        terms = gemm_add(x[:count], weight, stream, norm, scratch)
        results.append((stream[:rows], norm_gemm(terms, EPS, up, activation="silu")[:rows]))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(bool(part.isfinite().all()) for part in results[0])


def test_the_table_has_every_kind_and_number_of_rows() -> None:
    """Splits within what the scratch holds, none with a norm; each entry's rows are reached by that entry alone."""
    for kind in ("norm", "glu", "add"):
        configs = [fused_config(kind, rows) for rows in FUSED_BOUNDS]
        for rows in range(1, FUSED_BOUNDS[-1] + 1):
            entry = next(index for index, bound in enumerate(FUSED_BOUNDS) if rows <= bound)
            assert fused_config(kind, rows) == configs[entry]
        assert fused_config(kind, MAX_ROWS) == configs[-1]
        assert all(1 <= config.split_k <= (MAX_SPLIT if kind == "add" else 1) for config in configs)
        assert all(config.block_m <= 128 and config.block_n <= 128 for config in configs)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, norm = torch.zeros(257, 64), torch.zeros(64, 64), torch.zeros(64)
    scratch = FusedScratch.allocate(64, "cpu", rows=16)
    with pytest.raises(ValueError, match="1 to 256 rows"):
        gemm_add(x, weight, torch.zeros(257, 64), norm, scratch, config=FusedConfig(16, 16, 64))
    with pytest.raises(ValueError, match="scratch too small"):
        gemm_add(x[:256], weight, torch.zeros(256, 64), norm, scratch, config=FusedConfig(16, 16, 64, split_k=9))
    with pytest.raises(ValueError, match="as large as each other"):
        norm_gemm(NormTerms(x[:2], x[:2, :1].contiguous()), EPS, weight[:3], activation="silu")
