"""x Wᵀ + b with an unquantized weight, by the fastest of torch's ways for the shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SKINNY_ROWS = 8


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K] → [T, N].

    On the CPU a product of few rows costs one pass over the weight, and MKL's row-by-row kernels make that pass slowly:
    `W @ xᵀ` (a row alone is padded to two) takes 0.4 to 0.7 of the time for up to 8 rows where W has at least as many
    rows as columns, and for exactly 2 rows otherwise (fp32, AMD Zen 4, one thread: 49152 x 576 takes 6.3 ms instead of
    10.2 for one row, 6.3 instead of 25 for two; from 12 rows on `F.linear` leads).
    """
    rows = x.shape[0]
    if rows > SKINNY_ROWS or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    if rows != 2 and weight.shape[0] < weight.shape[1]:
        return F.linear(x, weight, bias)
    columns = F.pad(x, (0, 0, 0, 1)) if rows == 1 else x
    result = torch.mm(weight, columns.t()).t()[:rows].contiguous()
    return result if bias is None else result.add_(bias)
