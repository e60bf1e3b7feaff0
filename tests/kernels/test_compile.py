"""Every kind of kernel compiles for sm_80, sm_89, sm_90 and sm_100, within each target's shared memory, without a GPU.

Compiling needs a process that does not interpret. Two run at a time; Triton's cache makes the second run quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thranite_kernels.target import COMPILE_TARGETS, SHARED_LIMIT, Target

ROOT = Path(__file__).parents[2]


def _compile(capability: int) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "thranite_kernels.catalog", "--quick", "--capability", str(capability)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("pair", [COMPILE_TARGETS[:2], COMPILE_TARGETS[2:]])
def test_catalogue_compiles_and_fits(pair: tuple[int, ...]) -> None:
    """One process a target; the output names each kernel and its shared memory."""
    running = [_compile(capability) for capability in pair]
    try:
        outputs = [process.communicate(timeout=280)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for capability, process, output in zip(pair, running, outputs, strict=True):
        assert process.returncode == 0, f"sm_{capability}:\n{output[-3000:]}"
        assert output.count(f"sm_{capability} ") > 50


def test_limits_are_the_targets() -> None:
    """163 KiB on sm_80, 99 on sm_89, 227 on sm_90 and sm_100; the smallest where unknown."""
    limits = {capability: SHARED_LIMIT[capability] // 1024 for capability in COMPILE_TARGETS}
    assert limits == {80: 163, 89: 99, 90: 227, 100: 227}
    assert Target(75, 40).shared_limit == 99 * 1024
