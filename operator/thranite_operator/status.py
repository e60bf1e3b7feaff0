"""The status of an InferenceService, computed whole each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from thranite_operator import names
from thranite_operator.autoscaling.conditions import TYPES as AUTOSCALING
from thranite_operator.autoscaling.report import Report
from thranite_operator.causes import Cause, cause_of, last_failure
from thranite_operator.conditions import RECONCILE_FAILED, Condition, Problem, Replicas, Situation, decide
from thranite_operator.kinds import DEPLOYMENT, Object
from thranite_operator.observed import Observed
from thranite_operator.plan import Plan
from thranite_operator.pods import Pod
from thranite_operator.render.network import scheme
from thranite_operator.spec import InferenceService

MAX_MESSAGE = 2048


def compute(
    service: InferenceService,
    observed: Observed,
    plan: Plan,
    problems: Sequence[Problem],
    expected_start: int | None,
    now: datetime,
    autoscaling: Report | None = None,
) -> Object:
    alive = [pod for pod in observed.pods if not pod.deleting and pod.phase not in ("Failed", "Succeeded")]
    counts = count(service.spec.replicas, alive, plan.revision.template_hash)
    causes = pod_causes(observed, complete=counts.current_ready >= counts.desired)
    deployment = observed.child(DEPLOYMENT, service.name) or {}
    conditions = {item["type"]: item for item in deployment.get("status", {}).get("conditions", ())}
    gpu = service.spec.resources.gpu_resource_name if service.spec.resources.gpus else None
    decided = decide(Situation(counts, plan.model, causes, problems, conditions, gpu))
    decided += autoscaling.conditions if autoscaling is not None else ()
    port = service.spec.service.port
    failure = last_failure(observed.pods, service.status.get("lastFailure"))
    status = {
        "observedGeneration": service.generation,
        "replicas": counts.total,
        "readyReplicas": counts.ready,
        "updatedReplicas": counts.current,
        "pendingReplicas": counts.total - counts.ready,
        "unschedulableReplicas": counts.unschedulable,
        "selector": names.selector_text(service.name),
        "url": f"{scheme(service.spec)}://{service.name}.{service.namespace}.svc{'' if port == 80 else f':{port}'}/v1",
        "templateRevision": {
            "name": plan.revision.name,
            "operatorVersion": plan.revision.operator_version,
            "newerAvailable": plan.revision.newer,
        },
        "expectedStartSeconds": expected_start,
        "lastFailure": dict(failure) if failure else None,
        "autoscaling": dict(autoscaling.section) if autoscaling is not None and autoscaling.section else None,
        "conditions": merge_conditions(decided, service, now),
    }
    return {key: value for key, value in status.items() if value is not None}


def failed(service: InferenceService, message: str, now: datetime) -> Object:
    """The former status, with the failure that kept this reconcile from knowing better."""
    decided = [Condition("Ready", "Unknown", RECONCILE_FAILED, message[:MAX_MESSAGE])]
    known = {item["type"] for item in service.status.get("conditions", ())} | {"Ready"}
    missing = [kind for kind in ("Available", "Progressing", "ModelCached", "Degraded") if kind not in known]
    decided += [Condition(kind, "Unknown", RECONCILE_FAILED, message[:MAX_MESSAGE]) for kind in missing]
    fresh = {item["type"]: item for item in merge_conditions(decided, service, now)}
    kept = [item for item in service.status.get("conditions", ()) if item["type"] not in fresh]
    order = ("Ready", "Available", "Progressing", "ModelCached", "Degraded", *AUTOSCALING)
    conditions = sorted([*fresh.values(), *kept], key=lambda item: order.index(item["type"]))
    return {**service.status, "conditions": conditions}


def count(desired: int, alive: Sequence[Pod], template: str) -> Replicas:
    current = [pod for pod in alive if pod.template == template]
    return Replicas(
        desired=desired,
        total=len(alive),
        ready=sum(pod.ready for pod in alive),
        current=len(current),
        current_ready=sum(pod.ready for pod in current),
        unschedulable=sum(pod.unscheduled is not None for pod in alive),
    )


def pod_causes(observed: Observed, *, complete: bool) -> list[Cause]:
    """Failed pods that others have replaced are history."""
    pods = [pod for pod in observed.pods if not (complete and pod.phase == "Failed")]
    found = (cause_of(pod, observed.probe_messages.get(pod.name, "")) for pod in pods)
    return [cause for cause in found if cause is not None]


def merge_conditions(decided: Sequence[Condition], service: InferenceService, now: datetime) -> list[Mapping[str, Any]]:
    """The time of transition changes with the status alone."""
    former = {item["type"]: item for item in service.status.get("conditions", ())}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": item.type,
            "status": item.status,
            "observedGeneration": service.generation,
            "lastTransitionTime": former[item.type]["lastTransitionTime"]
            if former.get(item.type, {}).get("status") == item.status
            else stamp,
            "reason": item.reason,
            "message": item.message[:MAX_MESSAGE],
        }
        for item in decided
    ]
