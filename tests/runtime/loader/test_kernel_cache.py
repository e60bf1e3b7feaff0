"""Kernels compiled ahead, brought to where Triton looks: whole, once, and by several processes at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thranite.errors import ConfigError
from thranite.loader.kernel_cache import bring_kernels

COMPILE = """
import torch
from thranite_kernels.rms_norm import rms_norm_launch
from thranite_kernels.variant import Variant, compile_variant

x = torch.empty(8, 96, dtype=torch.float32, device="meta")
print(compile_variant(Variant.of(rms_norm_launch(x, x[0], 1e-6, residual=None, one_plus=False, out=x)), 80))
"""


def compile_into(folder: Path) -> bool:
    """Whether a process whose cache this is had to compile the kernel."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder.parent), "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"True": True, "False": False}[done.stdout.strip()]


def test_triton_finds_what_was_brought_from_a_folder_that_has_moved(tmp_path: Path) -> None:
    assert compile_into(tmp_path / "made")
    shipped = (tmp_path / "made").rename(tmp_path / "shipped")
    assert bring_kernels(shipped, tmp_path / "cache") == 1
    assert not compile_into(tmp_path / "cache")
    assert bring_kernels(shipped, tmp_path / "cache") == 0


def kernels(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "k.cubin").write_bytes(name.encode())
        paths = {"k.cubin": f"/elsewhere/{name}/k.cubin"}
        (folder / name / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    return folder


def test_several_processes_bring_each_kernel_once(tmp_path: Path) -> None:
    source = kernels(tmp_path / "source", *(f"kernel{number}" for number in range(40)))
    (source / "kernel.lock").touch()
    with ThreadPoolExecutor(4) as pool:
        brought = list(pool.map(lambda _: bring_kernels(source, tmp_path / "cache"), range(4)))
    assert sum(brought) == 40
    assert len(list((tmp_path / "cache").iterdir())) == 40
    for folder in (tmp_path / "cache").iterdir():
        assert (folder / "k.cubin").read_bytes() == folder.name.encode()
        group = json.loads((folder / "__grp__k.json").read_text())
        assert group == {"child_paths": {"k.cubin": str(folder / "k.cubin")}}


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    source, cache = kernels(tmp_path / "source", "a", "b"), tmp_path / "cache"
    kernels(cache, "a")
    (cache / "a" / "k.cubin").write_bytes(b"another")
    assert bring_kernels(source, cache) == 1
    assert (cache / "a" / "k.cubin").read_bytes() == b"another"


def test_what_cannot_be_brought_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A volume's lost+found, a kernel that is being written, one that is broken, one that may not be changed."""
    source = kernels(tmp_path / "source", "broken", "good", "fixed")
    (source / "lost+found").mkdir()
    (source / "unfinished").mkdir()
    (source / "unfinished" / "k.cubin").touch()
    (source / "broken" / "__grp__k.json").write_text("{")
    for file in (source / "fixed").iterdir():
        file.chmod(0o444)
    (source / "fixed").chmod(0o555)
    assert bring_kernels(source, tmp_path / "cache") == 2
    assert sorted(folder.name for folder in (tmp_path / "cache").iterdir()) == ["fixed", "good"]
    assert (tmp_path / "cache" / "fixed" / "k.cubin").stat().st_mode & 0o200
    assert "broken" in caplog.text


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--kernel-cache .*nowhere is no folder"):
        bring_kernels(tmp_path / "nowhere", tmp_path)
