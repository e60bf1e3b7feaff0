"""The chart, rendered by Helm itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.apiserver import tools_folder

CHART = Path(__file__).parents[2] / "charts" / "thranite"
NAMESPACE = "thranite-system"


class HelmRefusal(Exception):
    """What Helm printed on standard error."""


def helm(*arguments: str) -> str:
    done = subprocess.run([tools_folder() / "helm", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HelmRefusal(done.stderr)
    return done.stdout


def render(*values: str, release: str = "thranite") -> list[dict[str, Any]]:
    """Objects of `helm template` with `--set` values."""
    sets = [part for value in values for part in ("--set", value)]
    text = helm("template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.36.0", *sets)
    return [body for body in yaml.safe_load_all(text) if body]


def one(bodies: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [body for body in bodies if body["kind"] == kind and name in ("", body["metadata"]["name"])]
    return found
