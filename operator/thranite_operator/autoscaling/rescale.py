"""The one place that writes the wish, through /scale."""

from __future__ import annotations

from thranite_operator.kinds import INFERENCE_SERVICE
from thranite_operator.kube import KubeClient, Refused
from thranite_operator.spec import InferenceService

ATTEMPTS = 3


async def rescale(client: KubeClient, service: InferenceService, current: int, desired: int) -> bool:
    """False if the object is not what the decision was made for: someone wrote replicas or autoscaling, or made it
    anew. The write goes through only while the object is as it was read, so that a decision on what was there before
    never lands on another's. Raises KubeError."""
    for _ in range(ATTEMPTS):
        obj = await client.get(INFERENCE_SERVICE, service.namespace, service.name)
        if obj is None or obj["metadata"]["uid"] != service.uid or "deletionTimestamp" in obj["metadata"]:
            return False
        if obj["spec"]["replicas"] != current or obj["metadata"]["generation"] != service.generation:
            return False
        patch = {"metadata": {"resourceVersion": obj["metadata"]["resourceVersion"]}, "spec": {"replicas": desired}}
        try:
            await client.merge(INFERENCE_SERVICE, service.namespace, service.name, patch, "scale")
        except Refused as refusal:
            if refusal.code != 409:  # its status was written meanwhile, or its spec: look again
                raise
            continue
        return True
    return False
