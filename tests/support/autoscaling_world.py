"""One operator's autoscaler and reconciler against a real API server, with pretended runtimes in place of pods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import kopf

from tests.support.apiserver import ADMIN_TOKEN, ApiServer
from tests.support.kube import KubeApi, Object
from tests.support.manifests import condition, pod, service
from tests.support.pretended_runtimes import Exported, Runtimes
from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.autoscaling.scraper import Scraper
from thranite_operator.kube import KubeClient, KubeError
from thranite_operator.reconciler import Reconciler
from thranite_operator.settings import Settings

SETTINGS = Settings(runtime_image="thranite:test", version="1.0.0")
FAST = {"intervalSeconds": 1, "maxReplicas": 8, "behavior": {"scaleUp": {"pods": 2}}}


class World:
    """One operator's autoscaler and reconciler in one loop; whatever the autoscaler enqueues is reconciled, one at a
    time and again after a refusal, as the operator's queue does."""

    def __init__(self, server: ApiServer, api: KubeApi, namespace: str, runtimes: Runtimes) -> None:
        self.api, self.namespace, self.runtimes = api, namespace, runtimes
        self._info = kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=ADMIN_TOKEN)

    async def __aenter__(self) -> World:
        self.client = KubeClient(lambda: self._info, "thranite-operator/1")
        self._due, self._one_at_a_time = asyncio.Event(), asyncio.Lock()
        scraper = Scraper(port=self.runtimes.port)
        self.autoscaler = Autoscaler(self.client, scraper, lambda _: self._due.set())
        self._reconciler = Reconciler(self.client, SETTINGS, autoscaler=self.autoscaler)
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._one_at_a_time:  # a request that is cut off while it connects leaves its socket open
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task  # raises what ended it before
        await self.autoscaler.close()
        await self.client.__aexit__(None, None, None)

    async def _work(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.reconcile()
            except KubeError:
                self._due.set()
                await asyncio.sleep(0.1)

    async def reconcile(self) -> None:
        async with self._one_at_a_time:
            await self._reconciler.reconcile((self.namespace, "x"))

    async def start(self, *pods: Object, **spec: Any) -> None:
        """The service with as many pods as `pods`, each at 127.0.1.N."""
        await asyncio.to_thread(self.api.create, service(self.namespace, **spec))
        await self.reconcile()
        for index, status in enumerate(pods, 1):
            self.add_pod(index, status)
        await self.reconcile()

    def add_pod(self, index: int, status: Object) -> None:
        with_address = {**status, "podIP": f"127.0.1.{index}", "podIPs": [{"ip": f"127.0.1.{index}"}]}
        pod(self.api, self.namespace, with_address, name=f"x-{index}")

    def export(self, *exported: Exported) -> None:
        self.runtimes.exported = {f"127.0.1.{index}": item for index, item in enumerate(exported, 1)}

    @property
    def replicas(self) -> int:
        return int(self.api.get("InferenceService", self.namespace, "x")["spec"]["replicas"])

    @property
    def section(self) -> Object:
        found: Object = self.api.get("InferenceService", self.namespace, "x")["status"].get("autoscaling", {})
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        return condition(self.api, self.namespace, kind)[:2]


async def until(look: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.1)


def play(server: ApiServer, api: KubeApi, namespace: str, scene: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Runtimes() as runtimes, World(server, api, namespace, runtimes) as world:
            await scene(world)

    asyncio.run(whole())
