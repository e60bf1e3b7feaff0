"""`faults`: tells the fault proxy how to misbehave. docs/cluster.md describes the rules."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from .client import RunningCluster, http_call


def add_to(verbs: Any, add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    verb = add_verb(verbs, "faults", run, "tell the proxy in front of the API server how to misbehave")
    verb.add_argument("action", choices=["get", "set", "clear"])
    verb.add_argument("rules", nargs="?", help="JSON, or - to read it from the standard input")


def run(chosen: argparse.Namespace) -> int:
    path = RunningCluster(chosen.name).paths.faults_socket
    if chosen.action == "set":
        text = sys.stdin.read() if chosen.rules in (None, "-") else chosen.rules
        http_call(path, "PUT", "/faults", text)
    elif chosen.action == "clear":
        http_call(path, "DELETE", "/faults")
    else:
        print(json.dumps(json.loads(http_call(path, "GET", "/faults")), indent=1))
    return 0
