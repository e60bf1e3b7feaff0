"""What is in the cluster of one InferenceService, read fresh for each reconcile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thranite_operator import names
from thranite_operator.causes import probe_suspected
from thranite_operator.kinds import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    JOB,
    KINDS,
    NETWORK_POLICY,
    POD,
    POD_MONITOR,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
    Ref,
)
from thranite_operator.kube import KubeClient
from thranite_operator.model_state import Refusal, ends_of, is_alive
from thranite_operator.pods import Pod, project
from thranite_operator.spec import InferenceService

MAX_SUSPECTS = 5
NAMED = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY, POD_MONITOR)


@dataclass(frozen=True, slots=True)
class Observed:
    """`children`: those of the names the operator uses, whoever made them. `jobs` and `revisions`: ours alone."""

    children: Mapping[Ref, Object] = field(default_factory=dict)
    jobs: Sequence[Object] = ()
    revisions: Sequence[Object] = ()
    pods: Sequence[Pod] = ()
    loaders: Sequence[Pod] = ()
    probe_messages: Mapping[str, str] = field(default_factory=dict)  # by pod name
    refusals: Mapping[str, Refusal] = field(default_factory=dict)  # by the uid of a Job that has no pod

    def child(self, kind: Kind, name: str) -> Object | None:
        return self.children.get(Ref(kind.name, name))


async def observe(client: KubeClient, service: InferenceService) -> Observed:
    selector = names.of_service(service.name)
    namespace = service.namespace
    refs = [Ref(kind.name, service.name) for kind in NAMED]
    refs += [Ref(SERVICE.name, names.headless(service.name)), Ref(CLAIM.name, names.cache_claim(service.name))]
    lists = (client.items(kind, namespace, labelSelector=selector) for kind in (POD, JOB, CONTROLLER_REVISION))
    reads = (client.get(KINDS[ref.kind], namespace, ref.name) for ref in refs)
    (listed, jobs, revisions), objects = await asyncio.gather(asyncio.gather(*lists), asyncio.gather(*reads))
    pods = [project(item) for item in listed]
    children = {ref: obj for ref, obj in zip(refs, objects, strict=True) if obj is not None}
    engines = [pod for pod in pods if pod.component == names.ENGINE]
    loaders = [pod for pod in pods if pod.component == names.LOADER]
    own_jobs = [_typed(JOB, item) for item in jobs if _owned_by(item, service)]
    return Observed(
        children=children,
        jobs=own_jobs,
        revisions=[_typed(CONTROLLER_REVISION, item) for item in revisions if _owned_by(item, service)],
        pods=engines,
        loaders=loaders,
        probe_messages=await _probe_messages(client, namespace, engines),
        refusals=await _refusals(client, namespace, own_jobs, loaders),
    )


def _typed(kind: Kind, item: Object) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.name, **item}


def _owned_by(item: Mapping[str, Any], service: InferenceService) -> bool:
    return any(owner["uid"] == service.uid for owner in item["metadata"].get("ownerReferences", ()))


async def _probe_messages(client: KubeClient, namespace: str, pods: Sequence[Pod]) -> dict[str, str]:
    """Probes fail in events alone; they are asked for only where a probe is the suspect."""
    messages = {}
    for pod in list(filter(probe_suspected, pods))[:MAX_SUSPECTS]:
        newest = await _newest_event(client, namespace, pod.uid, "Unhealthy")
        if newest is not None:
            messages[pod.name] = str(newest.get("message", ""))
    return messages


async def _refusals(
    client: KubeClient, namespace: str, jobs: Sequence[Object], loaders: Sequence[Pod]
) -> dict[str, Refusal]:
    """A Job's status does not tell that its pods are refused; its events are asked for only while it has no pod."""
    served = {pod.owner for pod in loaders if is_alive(pod)}
    refusals = {}
    for job in jobs:
        uid = job["metadata"]["uid"]
        if uid in served or ends_of(job):
            continue
        newest = await _newest_event(client, namespace, uid, "FailedCreate")
        if newest is not None:
            refusals[uid] = Refusal(str(newest.get("message", "")), _event_time(newest))
    return refusals


async def _newest_event(client: KubeClient, namespace: str, uid: str, reason: str) -> Object | None:
    fields = f"involvedObject.uid={uid},reason={reason}"
    events = await client.items(EVENT, namespace, fieldSelector=fields)
    return max(events, key=_event_time, default=None)


def _event_time(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])
