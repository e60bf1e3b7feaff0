"""The operator's reconciler against a real API server, one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType

import kopf

from tests.support.apiserver import ADMIN_TOKEN, ApiServer
from thranite_operator.kube import KubeClient
from thranite_operator.reconciler import Again, Reconciler
from thranite_operator.settings import Settings

SETTINGS = Settings(runtime_image="thranite:test", version="1.0.0")


class Reconciling:
    """`now` is the operator's clock; it moves only when told to."""

    def __init__(self, server: ApiServer, settings: Settings = SETTINGS, token: str = ADMIN_TOKEN) -> None:
        self._info = kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=token)
        self._settings = settings
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __enter__(self) -> Reconciling:
        self._runner = asyncio.Runner()
        self._client = KubeClient(lambda: self._info, "test-operator")
        self._reconciler = self._new(self._settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.__aexit__(kind, error, trace))
        self._runner.close()

    def _new(self, settings: Settings) -> Reconciler:
        return Reconciler(self._client, settings, lambda: self.now)

    def restart(self, settings: Settings | None = None) -> None:
        """The operator's process ends, and another one takes over."""
        self._reconciler = self._new(settings or self._settings)

    @property
    def stamp(self) -> str:
        """`now` as Kubernetes writes it."""
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def reconcile(self, namespace: str, name: str = "x") -> Again:
        return self._runner.run(self._reconciler.reconcile((namespace, name)))

    def writes(self, namespace: str, name: str = "x") -> Mapping[str, int]:
        """What one reconcile writes: "verb Kind" → calls."""
        before = dict(self._client.writes)
        self.reconcile(namespace, name)
        after = self._client.writes
        changed = {key: count - before.get(key, 0) for key, count in after.items()}
        return {f"{verb} {kind}": count for (verb, kind), count in changed.items() if count}
