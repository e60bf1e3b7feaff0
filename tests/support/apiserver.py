"""A kube-apiserver and its etcd on free ports of this machine, for tests that need no pods.

The programs are those of `make cluster-tools`. No controller runs: nothing changes an object but the test and what it
tests.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.kube import KubeApi

ADMIN_TOKEN = "admin-token"
# Users without rights but those that a test binds.
OPERATOR_TOKEN, OPERATOR_USER = "operator-token", "thranite-operator"
LIMITED_TOKEN, LIMITED_USER = "limited-token", "limited-operator"
START_SECONDS = 60.0


@dataclass(frozen=True)
class ApiServer:
    url: str
    ca: Path
    kubeconfig: Path
    log: Path

    def api(self, token: str = ADMIN_TOKEN) -> KubeApi:
        return KubeApi(self.url, self.ca, token)


def tools_folder() -> Path:
    """The folder with the cluster's programs; skips the test where they are not built, except under CI."""
    cache = Path(os.environ.get("THRANITE_CACHE") or Path.home() / ".cache" / "thranite")
    folders = sorted(cache.glob("tools/bin-*"), key=lambda path: path.stat().st_mtime)
    if folders and (folders[-1] / "kube-apiserver").exists():
        return folders[-1]
    message = "kube-apiserver is not built: run `make cluster-tools`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running_api_server(folder: Path) -> Iterator[ApiServer]:
    tools = tools_folder()
    etcd, peer, port = free_ports(3)
    pki = folder / "pki"
    with ExitStack() as stack:
        command = [tools / "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync", "--log-level=error"]
        command += [f"--listen-client-urls=http://127.0.0.1:{etcd}", f"--advertise-client-urls=http://127.0.0.1:{etcd}"]
        command += [f"--listen-peer-urls=http://127.0.0.1:{peer}"]
        stack.enter_context(running(command, folder / "etcd.log"))
        command = [tools / "kube-apiserver", *_api_server_flags(folder, pki, etcd, port)]
        process = stack.enter_context(running(command, folder / "apiserver.log"))
        server = ApiServer(
            f"https://127.0.0.1:{port}", pki / "apiserver.crt", folder / "kubeconfig", folder / "apiserver.log"
        )
        _wait_ready(server, process)
        write_kubeconfig(server.kubeconfig, server, ADMIN_TOKEN)
        yield server


def _api_server_flags(folder: Path, pki: Path, etcd: int, port: int) -> list[str]:
    key = folder / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens = folder / "tokens.csv"
    users = [f"{ADMIN_TOKEN},admin,admin,system:masters"]
    users += [f"{OPERATOR_TOKEN},{OPERATOR_USER},operator", f"{LIMITED_TOKEN},{LIMITED_USER},limited"]
    tokens.write_text("\n".join(users) + "\n")
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--cert-dir={pki}",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        "--disable-admission-plugins=ServiceAccount",  # nobody makes the default account here
    ]


def _wait_ready(server: ApiServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(server):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"kube-apiserver does not serve:\n{server.log.read_text()[-3000:]}")
        time.sleep(0.1)


def _is_ready(server: ApiServer) -> bool:
    if not server.ca.exists():
        return False
    try:
        with server.api() as api:
            return api.client.get("/readyz").status_code == 200
    except (httpx.TransportError, ssl.SSLError):
        return False  # it does not listen yet, or has written only a part of its certificate


@contextmanager
def running(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


def write_kubeconfig(path: Path, server: ApiServer, token: str) -> None:
    cluster = {"server": server.url, "certificate-authority": str(server.ca)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
    }
    path.write_text(json.dumps(content))
