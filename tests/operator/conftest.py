"""One API server for all tests here that ask for it, with the CRD; a namespace a test."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.apiserver import ApiServer, running_api_server
from tests.support.kube import ApiRefusal, KubeApi
from tests.support.reconciling import Reconciling

CRD = Path(__file__).parents[2] / "crds" / "thranite.dev_inferenceservices.yaml"


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api_server(tmp_path_factory.mktemp("apiserver")) as server:
        with server.api() as api:
            api.create(yaml.safe_load(CRD.read_text()))
            wait_served(api)
        yield server


def wait_served(api: KubeApi) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            api.items("InferenceService", "default")
            return
        except ApiRefusal:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def api(api_server: ApiServer) -> Iterator[KubeApi]:
    with api_server.api() as client:
        yield client


@pytest.fixture
def operator(api_server: ApiServer) -> Iterator[Reconciling]:
    with Reconciling(api_server) as running:
        yield running


@pytest.fixture
def namespace(api: KubeApi) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
