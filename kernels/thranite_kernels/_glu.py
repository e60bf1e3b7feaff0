# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `glu`: out[t, j] = act(x[t, j]) * x[t, j + N]."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """1 - 2 / (exp(2x) + 1): exact at both ends, absolute error near 1e-7 in fp32."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """silu, gelu (erf) or gelu_tanh of fp32 `x`."""
    if KIND == "silu":
        return x / (1.0 + tl.exp2(-x * LOG2E))
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(KIND == "gelu_tanh")
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def glu_kernel(
    x_ptr,
    stride_x,  # input [rows, 2 N]: gate in the first half, up in the second
    y_ptr,
    stride_y,  # output [rows, N]
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row and BLOCK of columns; arithmetic in fp32, rounded once."""
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = cols < N
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * stride_x + cols, mask=live, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + N + cols, mask=live, other=0.0).to(tl.float32)
    y = activate(gate, KIND) * up
    tl.store(y_ptr + row * stride_y + cols, y.to(y_ptr.dtype.element_ty), mask=live)
