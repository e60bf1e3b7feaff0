"""Fixtures for every test that needs a cluster.

`cluster` and `local` come with tests/conftest.py, so that a run has one cluster whatever folders it spans; `namespace`
and the report of failed tests are for a folder's own conftest.

`CLUSTER=current` takes the cluster of the current kubectl context instead of starting one; tests that ask for `local`,
because they break things, are skipped then. `CLUSTER=NAME` takes a local cluster that is up.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.cluster.access import COMMAND as CLUSTER_COMMAND
from tests.cluster.access import Cluster, LocalCluster, Namespace, run

UP = ("--nodes", "2", "--gpus", "2", "--node-timeout", "10", "--eviction-timeout", "3")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    chosen = os.environ.get("CLUSTER", "")
    if chosen == "current":
        kubectl = shutil.which("kubectl")
        assert kubectl is not None, "CLUSTER=current needs kubectl in PATH"
        yield Cluster(kubectl, None, os.environ.get("CLUSTER_IMAGE", "python:3.12-slim"))
    elif chosen:
        yield LocalCluster(chosen)
    else:
        name = f"test-{os.getpid()}"
        run(*CLUSTER_COMMAND, "up", "--name", name, *UP)
        try:
            yield LocalCluster(name)
        finally:
            run(*CLUSTER_COMMAND, "down", "--name", name)


@pytest.fixture
def local(cluster: Cluster) -> LocalCluster:
    if not isinstance(cluster, LocalCluster):
        pytest.skip("needs the local cluster's own commands")
    return cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A fresh namespace that enforces the restricted profile, deleted afterwards without waiting."""
    stem = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].rstrip("-")
    name = f"{stem}-{os.urandom(2).hex()}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    meta = {"name": name, "labels": labels}
    cluster.kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}))
    # No pod is admitted before its account is there; a controller makes it, soon.
    cluster.kubectl("--namespace", name, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    yield Namespace(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")
