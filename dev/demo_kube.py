"""What the cluster demo stands on: a cluster of its own or the current one, kubectl, helm, steps with their time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
LOCAL = (sys.executable, str(ROOT / "dev" / "cluster"))
NAME = "demo"
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step failed; the message says which and why."""


@dataclass(frozen=True)
class Images:
    """`client` has Python, and the openai client or a way to fetch it."""

    operator: str
    runtime: str
    client: str


@dataclass(frozen=True)
class Kube:
    kubectl_path: str
    helm_path: str
    images: Images
    environment: Mapping[str, str] = field(default_factory=dict)
    temporary: bool = False  # the cluster ends with the demo

    def kubectl(self, *words: str, text: str | None = None, show: bool = False) -> str:
        if show:
            console.print(f"  [bold]$ kubectl {' '.join(words)}")
        answer = self._run((self.kubectl_path, *words), text)
        if show:
            console.print("".join(f"  {line}\n" for line in answer.splitlines()), end="", markup=False)
        return answer

    def helm(self, *words: str) -> str:
        console.print(f"  [bold]$ helm {' '.join(words)}")
        return self._run((self.helm_path, *words), None)

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen((self.kubectl_path, *words), env=self._environment(), **options)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _run(self, command: tuple[str, ...], text: str | None) -> str:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env=self._environment(), timeout=300
        )
        if done.returncode:
            raise DemoError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".strip())
        return done.stdout


@contextmanager
def current_cluster() -> Iterator[Kube]:
    """The cluster of the current kubectl context. Its images are named by the environment."""
    kubectl, helm = shutil.which("kubectl"), shutil.which("helm")
    if kubectl is None or helm is None:
        raise DemoError("CLUSTER=current needs kubectl and helm in PATH")
    operator, runtime = os.environ.get("OPERATOR_IMAGE"), os.environ.get("RUNTIME_IMAGE")
    if not operator or not runtime:
        raise DemoError("CLUSTER=current needs OPERATOR_IMAGE and RUNTIME_IMAGE, images that the cluster can pull")
    yield Kube(kubectl, helm, Images(operator, runtime, os.environ.get("CLIENT_IMAGE", "python:3.12-slim")))


@contextmanager
def local_cluster() -> Iterator[Kube]:
    """One of our own, gone at the end. Raises DemoError with the reason where the machine cannot run it."""
    down(quiet=True)  # what a killed demo left behind
    run_shown(*LOCAL, "up", "--name", NAME)
    try:
        done = subprocess.run([*LOCAL, "status", "--name", NAME, "--json"], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        image, tools = facts["image"], Path(facts["kubectl"]).parent
        environment = {
            "KUBECONFIG": facts["kubeconfig"],
            "KUBECACHEDIR": str(Path(facts["kubeconfig"]).parent / "cache"),
        }
        yield Kube(facts["kubectl"], str(tools / "helm"), Images(image, image, image), environment, temporary=True)
    finally:
        console.print("\n[bold]the cluster goes down")
        down(quiet=False)


def down(*, quiet: bool) -> None:
    subprocess.run([*LOCAL, "down", "--name", NAME], check=False, capture_output=quiet)


def run_shown(*command: str) -> None:
    """Its output is the user's to see; the last line is the reason if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        console.print(f"  {line.rstrip()}", markup=False)
    if process.wait():
        raise DemoError(last.removeprefix("error: "))


@dataclass
class Steps:
    """Numbered steps, each with what it took."""

    total: int
    number: int = 0
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        started = time.monotonic()
        console.print(f"\n[bold cyan]{self.number}/{self.total} {title}")
        yield
        now = time.monotonic()
        console.print(f"  [dim]{now - started:.1f} s, {now - self.began:.0f} s in all")
