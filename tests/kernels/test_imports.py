"""Importing the kernels starts no driver: it works without a GPU, and without touching CUDA where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "kernels" / "thranite_kernels"


def test_every_module_imports_without_a_driver() -> None:
    """All modules in one fresh process; torch.cuda must not have been initialised."""
    names = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    program = "; ".join(f"import thranite_kernels.{name}" for name in names)
    program += "; import torch, triton; assert not torch.cuda.is_initialized()"
    program += "; assert triton.runtime.driver._active is None"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {program}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(names) > 20
