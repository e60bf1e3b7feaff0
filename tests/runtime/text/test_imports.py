"""Server processes stay light, and `LLM` needs no server packages."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "banned"),
    [
        ("thranite.text.prompt, thranite.text.output, thranite.text.generation_config", "torch transformers msgspec"),
        ("thranite.server.app", "torch transformers"),
    ],
)
def test_what_is_not_imported(modules: str, banned: str) -> None:
    probe = f"import sys, {modules}; print([m for m in {banned.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
