"""The one builder of the workload behind a service: a Deployment, as replicas are interchangeable."""

from __future__ import annotations

from thranite_operator import names
from thranite_operator.kinds import DEPLOYMENT, Object
from thranite_operator.render.objects import child
from thranite_operator.spec import InferenceService

MIN_READY_SECONDS = 5
HISTORY = 3


def deployment(service: InferenceService, template: Object, revision: str) -> Object:
    """`template`: as stored in the ControllerRevision named `revision`."""
    rollout = service.spec.rollout
    rolling = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
    spec = {
        "replicas": service.spec.replicas,
        "selector": {"matchLabels": names.selector(service.name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "minReadySeconds": MIN_READY_SECONDS,
        "progressDeadlineSeconds": rollout.progress_deadline_seconds,
        "revisionHistoryLimit": HISTORY,
        "template": template,
    }
    obj = child(DEPLOYMENT, service, service.name, names.ENGINE, spec=spec)
    obj["metadata"]["annotations"] = {names.REVISION: revision}
    return obj
