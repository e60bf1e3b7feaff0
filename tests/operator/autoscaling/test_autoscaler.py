"""The autoscaler beside the reconciler, against a real API server and pretended runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import pytest

from tests.support.apiserver import ADMIN_TOKEN, ApiServer
from tests.support.kube import KubeApi, Object
from tests.support.manifests import condition, pod, ready, service, unschedulable
from tests.support.pretended_runtimes import Exported, Runtimes
from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.autoscaling.rescale import rescale
from thranite_operator.autoscaling.scraper import Scraper
from thranite_operator.kube import KubeClient, Unreachable
from thranite_operator.reconciler import Reconciler
from thranite_operator.settings import Settings
from thranite_operator.spec import parse_service

SETTINGS = Settings(runtime_image="thranite:test", version="1.0.0")
FAST = {"intervalSeconds": 1, "maxReplicas": 8, "behavior": {"scaleUp": {"pods": 2}}}


class World:
    """One operator's autoscaler and reconciler in one loop; whatever the autoscaler enqueues is reconciled."""

    def __init__(self, server: ApiServer, api: KubeApi, namespace: str, runtimes: Runtimes) -> None:
        self.api, self.namespace, self.runtimes = api, namespace, runtimes
        self._info = kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=ADMIN_TOKEN)

    async def __aenter__(self) -> World:
        self.client = KubeClient(lambda: self._info, "thranite-operator/1")
        self._scraper = await Scraper(port=self.runtimes.port).__aenter__()
        self._due = asyncio.Event()
        self.autoscaler = Autoscaler(self.client, self._scraper, lambda _: self._due.set())
        self._reconciler = Reconciler(self.client, SETTINGS, autoscaler=self.autoscaler)
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self.autoscaler.close()
        await self._scraper.__aexit__(None, None, None)
        await self.client.__aexit__(None, None, None)

    async def _work(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self.reconcile()

    async def reconcile(self) -> None:
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


def test_a_queue_adds_replicas_and_says_why(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    async def scene(world: World) -> None:
        world.export(Exported(waiting=9), Exported(waiting=8))
        await world.start(ready(), ready(), replicas=2, autoscaling=FAST)
        await until(lambda: world.replicas == 4)
        await until(lambda: world.section.get("desired") == 4)
        section = world.section
        assert (section["current"], section["recommended"], section["reason"]) == (2, 5, "ScaleUpLimit")
        metric = {"name": "QueueDepth", "average": "8.5", "target": "4", "replicas": 5, "reporting": 2, "missing": 0}
        assert section["metrics"][0] == metric
        (decision,) = section["decisions"]
        assert (decision["from"], decision["to"], decision["time"]) == (2, 4, section["lastScaleTime"])
        assert decision["message"].startswith("2 → 4: queue 8.5 per replica over 4")
        assert world.condition("AbleToScale") == ("True", "ReadyForNewScale")
        assert world.condition("ScalingActive") == ("True", "ValidMetricFound")
        (event,) = [item for item in api.items("Event", namespace) if item["reason"] == "SuccessfulRescale"]
        assert event["message"] == decision["message"]
        managers = api.get("InferenceService", namespace, "x")["metadata"]["managedFields"]
        assert [item.get("subresource") for item in managers if "f:replicas" in item["fieldsV1"].get("f:spec", {})] == [
            "scale"
        ]
        assert all("name[]=thranite_requests_waiting" in query for query in world.runtimes.asked)

    play(api_server, api, namespace, scene)


def test_metrics_that_are_gone_change_nothing(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    async def scene(world: World) -> None:
        await world.start(ready(), ready(), replicas=2, autoscaling=FAST)
        await until(lambda: world.condition("ScalingActive") == ("False", "MetricsUnavailable"))
        world.export(Exported())
        await until(lambda: world.condition("ScalingActive") == ("True", "MetricMissing"))
        assert world.replicas == 2

    play(api_server, api, namespace, scene)


def test_pods_without_a_node_stop_the_growth(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    async def scene(world: World) -> None:
        world.export(Exported(waiting=100))
        await world.start(ready(), unschedulable("0/1 nodes: Insufficient gpu"), replicas=2, autoscaling=FAST)
        await until(lambda: world.condition("ScalingLimited") == ("True", "InsufficientGPU"))
        assert world.replicas == 2
        assert "1 of its pods finds no node" in condition(api, namespace, "ScalingLimited")[2]

    play(api_server, api, namespace, scene)


def test_a_new_operator_neither_lowers_nor_jumps(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    """The one before was killed after it wrote 2 → 4 and before the status said so."""

    async def scene(world: World) -> None:
        world.export(*[Exported(waiting=100)] * 4)
        await world.start(*[ready()] * 4, replicas=2, autoscaling=FAST)
        section = {"current": 2, "desired": 2, "serviceRate": "3.5"}
        api.merge("InferenceService", namespace, "x", {"status": {"autoscaling": section}}, "status")
        api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 4}}, "scale")
        async with World(api_server, api, namespace, world.runtimes) as second:
            await second.reconcile()
            follower = second.autoscaler.follower((namespace, "x"))
            assert follower is not None
            await until(lambda: follower.last is not None)
            assert follower.last is not None
            assert (follower.last.desired, follower.last.state.service_rate) == (4, 3.5)
            assert world.replicas == 4

    async def idle(world: World) -> None:
        world.export(*[Exported()] * 3)
        await world.start(*[ready()] * 3, name="x", replicas=3, autoscaling=FAST)
        await until(lambda: world.condition("ScalingActive")[1] == "ValidMetricFound")
        await asyncio.sleep(2.5)
        assert world.replicas == 3

    play(api_server, api, namespace, scene)
    api.delete("InferenceService", namespace, "x")
    for item in api.items("Pod", namespace):
        api.delete("Pod", namespace, item["metadata"]["name"])
    play(api_server, api, namespace, idle)


def test_other_modes_are_left_alone(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    async def scene(world: World) -> None:
        world.export(Exported(waiting=100))
        await world.start(ready(), replicas=1, autoscaling=FAST)
        await until(lambda: world.condition("ScalingActive")[0] == "True")
        api.merge("InferenceService", namespace, "x", {"spec": {"autoscaling": {"mode": "External"}}})
        await world.reconcile()
        assert list(world.autoscaler.followers()) == []
        types = {item["type"] for item in api.get("InferenceService", namespace, "x")["status"]["conditions"]}
        assert types == {"Ready", "Available", "Progressing", "ModelCached", "Degraded"}
        assert world.section == {}

    play(api_server, api, namespace, scene)


@pytest.mark.parametrize("change", [{"replicas": 5}, {"autoscaling": {"maxReplicas": 3}}])
def test_a_decision_on_what_was_there_before_is_lost(
    api_server: ApiServer, api: KubeApi, namespace: str, change: Object
) -> None:
    async def scene(world: World) -> None:
        before = parse_service(api.create(service(namespace, replicas=2, autoscaling=FAST)))
        api.merge("InferenceService", namespace, "x", {"spec": change})
        assert not await rescale(world.client, before, 2, 4)
        assert world.replicas == change.get("replicas", 2)
        api.merge("InferenceService", namespace, "x", {"status": {"replicas": 1}}, "status")
        now = parse_service(api.get("InferenceService", namespace, "x"))
        assert await rescale(world.client, now, now.spec.replicas, 3)
        assert world.replicas == 3

    play(api_server, api, namespace, scene)


def test_a_write_between_reading_and_writing_is_seen(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    class Late(KubeClient):
        """Somebody writes whenever this client is about to."""

        late = ("status", {"status": {"replicas": 7}})

        async def merge(self, *arguments: Any, **options: Any) -> Object:
            part, patch = self.late
            api.merge("InferenceService", namespace, "x", patch, part)
            type(self).late = ("scale", {"spec": {"replicas": 6}})
            return await super().merge(*arguments, **options)

    async def scene(world: World) -> None:
        before = parse_service(api.create(service(namespace, replicas=2, autoscaling=FAST)))
        client = Late(lambda: world._info, "thranite-operator/1")
        try:
            assert not await rescale(client, before, 2, 4)
        finally:
            await client.__aexit__(None, None, None)
        assert world.replicas == 6

    play(api_server, api, namespace, scene)


def test_a_wish_that_cannot_be_written_is_told(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    async def scene(world: World) -> None:
        async def refuse(*_: Any, **__: Any) -> Object:
            raise Unreachable("the server is away")

        world.client.merge = refuse  # type: ignore[method-assign]
        world.export(Exported(waiting=100))
        await world.start(ready(), replicas=1, autoscaling=FAST)
        await until(lambda: world.condition("AbleToScale") == ("False", "FailedUpdateScale"))
        assert "the server is away" in condition(api, namespace, "AbleToScale")[2]
        assert world.section.get("lastScaleTime") is None

    play(api_server, api, namespace, scene)
