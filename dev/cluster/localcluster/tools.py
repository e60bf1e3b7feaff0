"""Builds the cluster's programs once, each upstream from its own pinned Go module, into a cache of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import ClusterError
from .paths import SOURCES, tools_folder

KUBERNETES = "v1.36.3"
VERSIONS = ("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion")
LINK_FLAGS = " ".join(["-s", "-w", *(f"-X {variable}={KUBERNETES}" for variable in VERSIONS)])
REPORT_EVERY = 20  # seconds


@dataclass(frozen=True)
class Module:
    """A folder with a go.mod. `seconds` is what its first build takes on 2 cores, when those before it are built."""

    name: str
    programs: tuple[str, ...]
    seconds: int
    packages: str = "tool"

    @property
    def folder(self) -> Path:
        return SOURCES / self.name

    def digest(self) -> str:
        content = hashlib.sha256(LINK_FLAGS.encode())
        for path in sorted(self.folder.rglob("*")):
            if path.name in ("go.mod", "go.sum") or path.suffix == ".go":
                content.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        return content.hexdigest()[:16]

    @property
    def built(self) -> Path:
        return tools_folder() / f"{self.name}-{self.digest()}"


KUBERNETES_PROGRAMS = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"),
)
MODULES = (
    Module("kubernetes", KUBERNETES_PROGRAMS, 540),
    Module("etcd", ("etcd",), 40),
    Module("containerd", ("containerd", "containerd-shim-runc-v2", "ctr"), 70),
    Module("coredns", ("coredns",), 60, "./..."),
    Module("kwok", ("kwok",), 90),
    Module("helm", ("helm",), 90),
    Module("helpers", ("api-proxy", "device-plugin", "image-runtime", "fake-pods", "sandbox"), 15, "./..."),
)


@cache
def installed_tools() -> Path:
    """The folder with all programs; raises if they are not built."""
    missing = [module.name for module in MODULES if not module.built.exists()]
    if missing:
        raise ClusterError(f"not built yet: {', '.join(missing)}. Run `make cluster-tools` first.")
    return _gather()


def _gather() -> Path:
    """One folder of links to all programs, so that they find each other."""
    combined = hashlib.sha256("".join(module.built.name for module in MODULES).encode()).hexdigest()[:16]
    folder = tools_folder() / f"bin-{combined}"
    if not folder.exists():
        fresh = tools_folder() / f".bin-{combined}-{os.getpid()}"
        fresh.mkdir()
        for module in MODULES:
            for program in module.programs:
                (fresh / program).symlink_to(module.built / program)
        fresh.replace(folder)
    return folder


def build() -> Path:
    if shutil.which("go") is None:
        raise ClusterError(
            "Go 1.26 or newer is needed to build the cluster's programs: install it and put `go` in PATH"
        )
    waiting = [module for module in MODULES if not module.built.exists()]
    if waiting:
        minutes = sum(module.seconds for module in waiting) / 60
        names = ", ".join(module.name for module in waiting)
        print(f"building {names}: about {minutes:.0f} min on 2 cores without a cache", flush=True)
    started = time.monotonic()
    for number, module in enumerate(waiting, 1):
        _build_module(module, f"[{number}/{len(waiting)}]")
    folder = _gather()
    spent = f" (built in {time.monotonic() - started:.0f} s)" if waiting else ""
    print(f"the cluster's programs are in {folder}{spent}")
    return folder


def _build_module(module: Module, position: str) -> None:
    fresh = tools_folder() / f".{module.name}-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    command = ["go", "build", "-v", "-trimpath", f"-ldflags={LINK_FLAGS}", "-o", f"{fresh}/", module.packages]
    environment = {**os.environ, "CGO_ENABLED": "0"}
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=module.folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _follow(process, f"{position} {module.name}", started)
    except BaseException:
        process.kill()
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if (fresh / "server").exists():  # etcd's main package has that name
        (fresh / "server").rename(fresh / "etcd")
    absent = [program for program in module.programs if not (fresh / program).exists()]
    if absent:
        raise ClusterError(f"the build of {module.name} made no {', '.join(absent)}")
    fresh.replace(module.built)
    print(f"{position} {module.name}: {time.monotonic() - started:.0f} s", flush=True)


def _follow(process: subprocess.Popen[str], title: str, started: float) -> None:
    """Reports now and then how many packages are compiled; go names each on a line."""
    assert process.stderr is not None
    compiled, reported, other = 0, started, []
    for line in process.stderr:
        if " " in line.strip():
            other.append(line)
        else:
            compiled += 1
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            print(f"{title}: {compiled} packages, {reported - started:.0f} s", flush=True)
    if process.wait() != 0:
        sys.stderr.writelines(other[-40:])
        raise ClusterError(f"{title}: the build failed")
