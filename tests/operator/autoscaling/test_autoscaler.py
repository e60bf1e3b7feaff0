"""The autoscaler beside the reconciler, against a real API server and pretended runtimes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.apiserver import ApiServer
from tests.support.autoscaling_world import FAST, World, play, until
from tests.support.kube import KubeApi, Object
from tests.support.manifests import condition, ready, service, unschedulable
from tests.support.pretended_runtimes import Exported
from thranite_operator.autoscaling.rescale import rescale
from thranite_operator.kube import KubeClient, Unreachable
from thranite_operator.spec import parse_service


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
        await world.start(*[ready()] * 4, replicas=2, autoscaling={**FAST, "mode": "Off"})  # nobody scales yet
        section = {"current": 2, "desired": 2, "serviceRate": "3.5"}
        api.merge("InferenceService", namespace, "x", {"status": {"autoscaling": section}}, "status")
        api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 4}}, "scale")
        api.merge("InferenceService", namespace, "x", {"spec": {"autoscaling": {"mode": "Internal"}}})
        await world.reconcile()
        follower = world.autoscaler.follower((namespace, "x"))
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
