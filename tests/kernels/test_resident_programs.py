"""All programs of `stream_decode` run at once, as many on each multiprocessor: where one had to wait for another's end,
it would be the only one left. Registers and shared memory as compiled.

Compiling needs a process that does not interpret.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTERS, SHARED, RESERVED = 65536, 228 * 1024, 1024
"""Of a multiprocessor of sm_90 and sm_100, and what each program takes beyond its own (CUDA programming guide)."""

PRINT_USE = r"""
import re, subprocess, sys, tempfile, triton
from thranite_kernels.catalog import NUM_SMS, attention_entries
from thranite_kernels.target import Target, pretended
capability = int(sys.argv[1])
target = Target(capability, NUM_SMS[capability])
with pretended(target):
    entries = [entry for entry in attention_entries(target, "decode") if entry.name.startswith("stream_decode H")]
for entry in entries:
    compiled = entry.launch.compile(capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, local = (re.search(rf"{name}:(\d+)", report)[1] for name in ("REG", "LOCAL"))
    programs = entry.launch.grid[0] // target.num_sms
    print(programs, registers, local, compiled.metadata.shared, 32 * entry.launch.num_warps, entry.name, sep="\t")
"""


@pytest.mark.parametrize("capability", [90, 100])
def test_every_program_has_its_place(capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PRINT_USE, str(capability)]
    lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) > 10
    for line in lines:
        programs, registers, local, shared, threads = (int(field) for field in line.split("\t")[:-1])
        allocated = -(-registers // 8) * 8 * threads
        assert programs >= 2, line
        assert local == 0, line
        assert programs * allocated <= REGISTERS, line
        assert programs * (shared + RESERVED) <= SHARED, line
