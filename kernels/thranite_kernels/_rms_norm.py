# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `rms_norm`: one program per row, the whole row in registers."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["eps", "rows"])
def rms_norm_kernel(
    x_ptr,
    stride_x,  # input [rows, N], row stride in elements; with parts fp32 [PARTS, rows, N], contiguous
    residual_ptr,
    stride_r,  # residual stream [rows, N], updated in place
    weight_ptr,  # [N]
    y_ptr,
    stride_y,  # output [rows, N]
    eps,
    rows,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ONE_PLUS: tl.constexpr,
    PDL: tl.constexpr,
):
    """h = x or the sum of its parts (+ residual, rounded to its dtype and written back); y = h / sqrt(mean(h^2) + eps)
    * (w or 1 + w)."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    live = cols < N
    weight = tl.load(weight_ptr + cols, mask=live, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    h = tl.load(x_ptr + row * stride_x + cols, mask=live, other=0.0).to(tl.float32)
    if PARTS > 1:
        for part in tl.static_range(1, PARTS):
            h += tl.load(x_ptr + (part * rows + row) * N + cols, mask=live, other=0.0)
        h = h.to(y_ptr.dtype.element_ty).to(tl.float32)  # as a product's result is rounded
    if RESIDUAL:
        at = residual_ptr + row * stride_r + cols
        total = h + tl.load(at, mask=live, other=0.0).to(tl.float32)
        rounded = total.to(residual_ptr.dtype.element_ty)
        tl.store(at, rounded, mask=live)
        h = rounded.to(tl.float32)
    if ONE_PLUS:
        weight += 1.0
    scale = tl.rsqrt(tl.sum(h * h, axis=0) / N + eps)
    tl.store(y_ptr + row * stride_y + cols, (h * scale * weight).to(y_ptr.dtype.element_ty), mask=live)
