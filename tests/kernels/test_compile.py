"""Every kind of kernel compiles for sm_80, sm_89, sm_90 and sm_100, within each target's shared memory, without a GPU.

Compiling needs a process that does not interpret. Two run at a time; Triton's cache makes the next run quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thranite_kernels.target import COMPILE_TARGETS, SHARED_LIMIT, Target

ROOT = Path(__file__).parents[2]


HALVES = (("elementwise", "sampler"), ("gemm", "decode", "prefill"))
"""Parts that take about equally long; the two processes of one target."""


def _compile(capability: int, parts: tuple[str, ...]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "thranite_kernels.catalog", "--quick", "--capability", str(capability)]
    for part in parts:
        command += ["--part", part]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("capability", COMPILE_TARGETS)
def test_catalogue_compiles_and_fits(capability: int) -> None:
    """The output names each kernel and its shared memory."""
    running = [_compile(capability, parts) for parts in HALVES]
    try:
        outputs = [process.communicate(timeout=290)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    assert "".join(outputs).count(f"sm_{capability} ") > 50


def test_limits_are_the_targets() -> None:
    """163 KiB on sm_80, 99 on sm_89, 227 on sm_90 and sm_100; the smallest where unknown."""
    limits = {capability: SHARED_LIMIT[capability] // 1024 for capability in COMPILE_TARGETS}
    assert limits == {80: 163, 89: 99, 90: 227, 100: 227}
    assert Target(75, 40).shared_limit == 99 * 1024
