"""The command line: one subcommand a verb."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Protocol

from . import commands, faultscommands, keeper, kwok, volumes
from .errors import ClusterError
from .plan import Options

INTERNAL: dict[str, Callable[[list[str]], int]] = {
    "_keep": lambda words: keeper.keep(words[0], int(words[1]), [int(word) for word in words[2:]]),
    "_init": keeper.init,
    "_volumes": lambda words: volumes.run_provisioner(words[0]),
}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in INTERNAL:
        return INTERNAL[arguments[0]](arguments[1:])
    chosen = parser().parse_args(_mark_command(arguments))
    try:
        code: int = chosen.run(chosen)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _mark_command(arguments: list[str]) -> list[str]:
    """Sets `--` before another program's words, so that its flags are not taken for this one's."""
    if not arguments or arguments[0] not in ("kubectl", "exec") or "--help" in arguments[1:2]:
        return arguments
    at = 1
    while at < len(arguments) and arguments[at] in ("--name", "--node", "--faults"):
        at += 1 if arguments[at] == "--faults" else 2
    return arguments if arguments[at : at + 1] == ["--"] else [*arguments[:at], "--", *arguments[at:]]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 dev/cluster", description="A real Kubernetes on this machine.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    _add_lifecycle(verbs)
    _add_use(verbs)
    _add_trouble(verbs)
    faultscommands.add_to(verbs, add_verb)
    kwok.add_to(verbs, add_verb)
    return top


class Verbs(Protocol):
    """What argparse gives for subcommands; its own class has no public name."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


def add_verb(verbs: Verbs, name: str, run: object, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=run)
    known = os.environ.get("THRANITE_CLUSTER", Options.name)
    verb.add_argument("--name", default=known, help=f"the cluster (default {known}; THRANITE_CLUSTER)")
    return verb


def _add_lifecycle(verbs: Verbs) -> None:
    add_verb(verbs, "build", commands.build, "install system packages and build the cluster's programs")
    up = add_verb(verbs, "up", commands.up, "start a cluster and wait until its nodes are Ready")
    _add_number(up, "--nodes", Options.nodes, "how many")
    _add_number(up, "--gpus", Options.gpus, "pretended GPUs on each node")
    _add_number(up, "--node-timeout", Options.node_timeout, "seconds until a silent node is NotReady")
    _add_number(up, "--eviction-timeout", Options.eviction_timeout, "seconds until its pods are evicted")
    _add_number(up, "--qps", Options.qps, "requests a second of the controllers and the scheduler")
    down = add_verb(verbs, "down", commands.down, "end a cluster and remove every trace of it")
    down.add_argument("--all", action="store_true", help="all clusters")
    status = add_verb(verbs, "status", commands.status, "tell what runs and where its files are")
    status.add_argument("--json", action="store_true", help="for programs")


def _add_number(verb: argparse.ArgumentParser, flag: str, default: int, text: str) -> None:
    verb.add_argument(flag, type=int, metavar="N", default=default, help=f"{text} (default %(default)s)")


def _add_use(verbs: Verbs) -> None:
    kubectl = add_verb(verbs, "kubectl", commands.kubectl, "run kubectl against the cluster")
    kubectl.add_argument("--faults", action="store_true", help="through the fault proxy")
    kubectl.add_argument("words", nargs=argparse.REMAINDER)
    execute = add_verb(verbs, "exec", commands.execute, "run a command inside the cluster's network")
    execute.add_argument("--node", default="", help="inside this node instead of beside the API server")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    load = add_verb(verbs, "load-image", commands.load_image, "bring an image of buildah's or an archive to all nodes")
    load.add_argument("image", help="its name, or the path of a docker or OCI archive")


def _add_trouble(verbs: Verbs) -> None:
    target = "a component as `status` names it, a node, or pod/NAMESPACE/NAME[/CONTAINER]"
    texts = {
        "kill": "SIGKILL, or power off a node",
        "stop": "SIGSTOP",
        "resume": "SIGCONT after `stop`",
        "start": "start what was killed",
        "cut": "take the network away: packets are dropped",
        "heal": "give it back after `cut`",
    }
    for name, text in texts.items():
        add_verb(verbs, name, commands.trouble, text).add_argument("target", help=target)
    gpu = add_verb(verbs, "gpu", commands.gpu, "make a pretended GPU of a node unhealthy or healthy again")
    gpu.add_argument("node")
    gpu.add_argument("index", type=int)
    gpu.add_argument("health", choices=["healthy", "unhealthy"])
