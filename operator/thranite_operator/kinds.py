"""The kinds of objects that the operator reads or writes, and where the API serves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thranite_operator import names

Object = dict[str, Any]
View = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    api_version: str
    name: str
    plural: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        parts = (f"{root}/namespaces/{namespace}/{self.plural}", name, subresource)
        return "/".join(part for part in parts if part)


INFERENCE_SERVICE = Kind(names.API_VERSION, names.KIND, names.PLURAL)
CONTROLLER_REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
EVENT = Kind("v1", "Event", "events")
JOB = Kind("batch/v1", "Job", "jobs")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
POD = Kind("v1", "Pod", "pods")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")
SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")

KINDS = {
    kind.name: kind
    for kind in (
        *(INFERENCE_SERVICE, CONTROLLER_REVISION, DEPLOYMENT, EVENT, JOB, NETWORK_POLICY, CLAIM, POD),
        *(DISRUPTION_BUDGET, POD_MONITOR, SERVICE, SERVICE_ACCOUNT),
    )
}


def kind_of(obj: View) -> Kind:
    return KINDS[obj["kind"]]


def controller_uid(obj: View) -> str | None:
    """Of the owner that made it."""
    owners = obj["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A child within the namespace of its InferenceService."""

    kind: str
    name: str

    @staticmethod
    def of(obj: View) -> Ref:
        return Ref(obj["kind"], obj["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
