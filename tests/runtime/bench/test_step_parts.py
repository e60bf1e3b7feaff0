"""A step's parts from a trace's intervals."""

from __future__ import annotations

import pytest

from thranite.bench.step_parts import Interval, kind_of, parts_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("paged_decode_kernel", "attention"),
        ("prefill_plan_kernel", "attention"),
        ("stream_gemm_kernel", "gemm"),
        ("nvjet_tst_128x64_64x7_1x2_h_bz_TNT", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "gemm"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "gemm"),
        ("skinny_dot_kernel", "gemm"),
        ("packet_all_reduce_norm_kernel", "sums"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "sums"),
        ("weigh_kernel", "sampler"),
        ("draw_kernel", "sampler"),
        ("shape_kernel", "sampler"),
        ("peak_kernel", "sampler"),
        ("logprob_row_kernel", "sampler"),
        ("rms_norm_kernel", "other"),
        ("Memcpy HtoD (Pinned -> Device)", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_parts_add_up_to_the_wall() -> None:
    intervals = [
        Interval("paged_decode_kernel", 100, 300),
        Interval("skinny_dot_kernel", 250, 600),  # 50 of it beside the first
        Interval("rms_norm_kernel", 400, 500),  # hidden
        Interval("draw_kernel", 1000, 1100),
    ]
    parts = parts_of(intervals, wall_seconds=2e-3, host_seconds=1e-3, steps=2)
    assert (parts.attention, parts.gemm, parts.sampler, parts.other) == pytest.approx((0.1, 0.15, 0.05, 0.0))
    assert parts.wall == pytest.approx(1.0)
    assert parts.idle == pytest.approx(0.7)
    assert parts.host == pytest.approx(0.5)
    assert parts.line().startswith("2 steps of 1.000 ms: attention 0.100 (10%)")


def test_order_does_not_matter() -> None:
    intervals = [Interval("a", 5, 10), Interval("gemm", 0, 7)]
    assert parts_of(intervals, 1e-5, 0.0, 1) == parts_of(reversed(intervals), 1e-5, 0.0, 1)
