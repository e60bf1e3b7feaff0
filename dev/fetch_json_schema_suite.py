"""Fetch the public JSON-Schema-Test-Suite and print its directory.

It comes from the source archive of `jsonschema` on the Python package index, which carries it, and is kept in a cache
outside the checkout: $THRANITE_CACHE, or ~/.cache/thranite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SOURCE = "jsonschema==4.26.0"


def suite_directory() -> Path:
    """Where the suite is, or will be."""
    cache = os.environ.get("THRANITE_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "thranite") / "json-schema-test-suite-4.26.0"


def fetch(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory.parent) as work:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-binary", "jsonschema", "--dest", work, SOURCE], check=True)
        [archive] = Path(work).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(work, filter="data")
        [unpacked] = Path(work).glob("jsonschema-*/json/tests")
        if not directory.is_dir():
            unpacked.rename(directory)


def main() -> int:
    directory = suite_directory()
    if not directory.is_dir():
        fetch(directory)
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
