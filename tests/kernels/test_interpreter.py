"""Runs this folder in Triton's interpreter where the surrounding process compiles kernels or has not chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process is the interpreter's")
def test_folder_passes_in_the_interpreter() -> None:
    """The same tests, in a process that sets TRITON_INTERPRET before Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(FOLDER)]
    command += ["--ignore", str(FOLDER / "test_compile.py"), "--ignore", str(FOLDER / "test_imports.py")]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
