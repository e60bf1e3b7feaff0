"""One comparison for every kernel test: error relative to the reference's root mean square."""

from __future__ import annotations

import torch

RMS_BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""Bound of ‖out − ref‖ / ‖ref‖ by output dtype: rounding of the output plus the kernel's own operand rounding."""

MAX_BOUND = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Bound of the largest single error, in units of the reference's RMS."""


def rms_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; NaN if either holds one."""
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    scale = e.square().mean().sqrt().clamp_min(1e-30)
    return float((a - e).square().mean().sqrt() / scale)


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    rms: float | None = None,
    peak: float | None = None,
    name: str = "output",
) -> None:
    """Fail unless both the RMS and the largest error, relative to the reference's RMS, stay within bounds.

    Defaults follow `actual.dtype`. NaN never passes. The message lists the worst coordinates.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    rms = RMS_BOUND[actual.dtype] if rms is None else rms
    peak = MAX_BOUND[actual.dtype] if peak is None else peak
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    scale = e.square().mean().sqrt().clamp_min(1e-30)
    error = (a - e).abs() / scale
    measured_rms, measured_peak = float(error.square().mean().sqrt()), float(error.nan_to_num(torch.inf).max())
    if measured_rms <= rms and measured_peak <= peak:
        return
    order = error.nan_to_num(torch.inf).flatten().argsort(descending=True)[:5]
    rows = []
    for flat in order.tolist():
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
        rows.append(f"  {at}: {float(a[at]):.6g}, expected {float(e[at]):.6g}")
    raise AssertionError(
        f"{name}: RMS error {measured_rms:.3g} (bound {rms:.3g}), largest {measured_peak:.3g} (bound {peak:.3g})\n"
        + "\n".join(rows)
    )
