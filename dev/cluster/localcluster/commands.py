"""What the subcommands do."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from . import images, lifecycle, pods, preflight, tools
from .client import RunningCluster
from .errors import ClusterError
from .node import CONTAINERD_SOCKET
from .paths import ClusterPaths, clusters_folder
from .plan import CONTROL_IP, FAULTS_PORT, Options
from .shell import run


def build(_: argparse.Namespace) -> int:
    preflight.install_packages()
    tools.build()
    return 0


def up(chosen: argparse.Namespace) -> int:
    options = Options(
        name=chosen.name,
        nodes=chosen.nodes,
        gpus=chosen.gpus,
        node_timeout=chosen.node_timeout,
        eviction_timeout=chosen.eviction_timeout,
        qps=chosen.qps,
    )
    paths = lifecycle.up(options)
    print(f"  export KUBECONFIG={paths.kubeconfig}")
    print(f"  kubectl: {tools.installed_tools() / 'kubectl'}, or `python3 dev/cluster kubectl`")
    print(f"  logs:    {paths.logs}")
    print(f"  image:   {images.DEV_IMAGE} sees this checkout and its virtual environment")
    return 0


def down(chosen: argparse.Namespace) -> int:
    for name in lifecycle.names() if chosen.all else [chosen.name]:
        lifecycle.down(name)
    return 0


def describe(name: str) -> dict[str, object]:
    cluster = RunningCluster(name)
    paths = cluster.paths
    return {
        "name": name,
        "nodes": [node.name for node in cluster.options.node_plans()],
        "kubeconfig": str(paths.kubeconfig),
        "faultsKubeconfig": str(paths.faults_kubeconfig),
        "faultsInside": f"https://{CONTROL_IP}:{FAULTS_PORT}",
        "kubectl": str(tools.installed_tools() / "kubectl"),
        "logs": str(paths.logs),
        "auditLog": str(paths.audit_log),
        "image": images.DEV_IMAGE,
        **cluster.ask("status"),
    }


def status(chosen: argparse.Namespace) -> int:
    facts = describe(chosen.name)
    if chosen.json:
        print(json.dumps(facts, indent=1))
        return 0
    components = facts.pop("components")
    assert isinstance(components, dict)
    for key, value in facts.items():
        print(f"{key:17} {' '.join(value) if isinstance(value, list) else value}")
    for component, state in sorted(components.items()):
        print(f"  {component:32} {state}")
    return 0


def kubectl(chosen: argparse.Namespace) -> int:
    paths = ClusterPaths.of(chosen.name)
    if not paths.kubeconfig.exists():
        raise ClusterError(f"no cluster named {chosen.name!r} is up")
    config = paths.faults_kubeconfig if chosen.faults else paths.kubeconfig
    program = str(tools.installed_tools() / "kubectl")
    words = chosen.words[1:] if chosen.words[:1] == ["--"] else chosen.words
    os.execve(
        program,
        ["kubectl", *words],
        {**os.environ, "KUBECONFIG": str(config), "KUBECACHEDIR": str(paths.kubectl_cache)},
    )


def execute(chosen: argparse.Namespace) -> int:
    words = chosen.words[1:] if chosen.words[:1] == ["--"] else chosen.words
    if not words:
        raise ClusterError("say what to run: exec [--node NODE] -- COMMAND …")
    command = [*RunningCluster(chosen.name).enter(chosen.node), *words]
    os.execvp(command[0], command)


def load_image(chosen: argparse.Namespace) -> int:
    cluster = RunningCluster(chosen.name)
    with tempfile.TemporaryDirectory(dir=clusters_folder()) as folder:
        archive = Path(chosen.image).resolve()
        if not archive.is_file():
            archive = _export(chosen.image, Path(folder) / "image.tar")
        ctr = (str(tools.installed_tools() / "ctr"), "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io")
        for node in cluster.options.node_plans():
            # What ctr prints of its progress may be nothing: it stops listening as soon as the transfer has ended.
            run(*cluster.enter(node.name), *ctr, "images", "import", archive, timeout=600)
            print(f"{node.name}: {chosen.image}")
    return 0


def _export(image: str, archive: Path) -> Path:
    if shutil.which("buildah") is None:
        raise ClusterError(f"no file {image!r}, and no buildah that could have built an image of that name")
    run("buildah", "push", image, f"docker-archive:{archive}:{image}", timeout=600)
    return archive


def trouble(chosen: argparse.Namespace) -> int:
    cluster = RunningCluster(chosen.name)
    if chosen.target.startswith("pod/") and chosen.verb in pods.SIGNALS:
        pods.signal_pod(cluster, chosen.verb, chosen.target)
    else:
        cluster.ask(chosen.verb, chosen.target)
    return 0


def gpu(chosen: argparse.Namespace) -> int:
    cluster = RunningCluster(chosen.name)
    if chosen.node not in {node.name for node in cluster.options.node_plans()}:
        raise ClusterError(f"no node {chosen.node!r}")
    if not 0 <= chosen.index < cluster.options.gpus:
        raise ClusterError(f"{chosen.node} has GPUs 0 to {cluster.options.gpus - 1}")
    path = cluster.paths.unhealthy_gpus(chosen.node)
    sick = set(path.read_text().split()) if path.exists() else set()
    sick = sick | {str(chosen.index)} if chosen.health == "unhealthy" else sick - {str(chosen.index)}
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(sorted(sick)))
    fresh.replace(path)
    return 0
