"""The cache of a hub model: a claim, and the Job that checks the model and fills the claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thranite_operator import names
from thranite_operator.hashing import digest
from thranite_operator.kinds import CLAIM, JOB, Object
from thranite_operator.render import containers, flags
from thranite_operator.render.model import Location, locate
from thranite_operator.render.objects import child, compact
from thranite_operator.render.pod_template import pod_spec, volumes
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService

RETRIES = 2
FINAL_EXIT_CODES = [2, 3, 4, 5, 6, 7]  # usage, configuration, no such model, unsupported, broken, too large
DEFAULT_ACCESS_MODE = "ReadWriteMany"
JOB_LABELS = ("job-name", "controller-uid")  # a Job's own, with those of the domain below: it is refused with others
JOB_DOMAIN = "batch.kubernetes.io/"


def claim(service: InferenceService) -> Object | None:
    """A claim of our own; None where there is no cache or it fills the user's."""
    cache = service.spec.model.cache
    if cache.type != "PVC" or cache.size is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": [cache.access_mode or DEFAULT_ACCESS_MODE],
        "resources": {"requests": {"storage": str(cache.size)}},
    }
    if cache.storage_class is not None:
        spec["storageClassName"] = cache.storage_class
    return child(CLAIM, service, names.cache_claim(service.name), names.LOADER, spec=spec)


def loader_job(service: InferenceService, settings: Settings) -> Object | None:
    """A Job's template never changes. Its name is made of what decides about the model's files, so one that has loaded
    them stays; its label tells the rest, for one that has not."""
    location = locate(service)
    if location.loaded_by != names.LOADER:
        return None
    template = _template(service, location, settings)
    name = names.loader_job(service.name, digest(_identity(service, location)))
    failures = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": FINAL_EXIT_CODES}}]
    spec = {"backoffLimit": RETRIES, "podFailurePolicy": {"rules": failures}, "template": template}
    job = child(JOB, service, name, names.LOADER, spec=spec)
    job["metadata"]["labels"][names.TEMPLATE] = digest(spec)
    return job


def _identity(service: InferenceService, location: Location) -> Object:
    """A changed option that `check` judges makes a new Job; the download then finds its files."""
    token = service.spec.model.token_secret_ref
    return {
        "claim": location.claim,
        "check": flags.check(service, location),
        "token": [token.name, token.key] if token else None,
        "env": [dict(item) for item in service.spec.engine.env],
    }


def _template(service: InferenceService, location: Location, settings: Settings) -> Object:
    extra = service.spec.pod_template
    extra_volumes = [volume for volume in extra.volumes if _may_be_shared(volume)]
    known = {volume["name"] for volume in extra_volumes}
    mounts = [mount for mount in extra.volume_mounts if mount["name"] in known]
    check, download = containers.loaders(service, location, settings, mounts)
    spec = pod_spec(service)
    # A fresh claim belongs to root; one that was filled before is not walked through again.
    spec["securityContext"] |= {"fsGroup": containers.USER, "fsGroupChangePolicy": "OnRootMismatch"}
    spec.pop("topologySpreadConstraints", None)
    spec |= {"restartPolicy": "Never", "initContainers": [check], "containers": [download]}
    spec["volumes"] = [*volumes(service, location), *extra_volumes]
    users = {key: value for key, value in extra.labels.items() if not _is_job_s(key)}
    labels = {**users, **names.labels(service.name, names.LOADER)}
    return {"metadata": compact({"labels": labels, "annotations": extra.annotations}), "spec": spec}


def _is_job_s(label: str) -> bool:
    return label in JOB_LABELS or label.startswith(JOB_DOMAIN)


def _may_be_shared(volume: Mapping[str, Any]) -> bool:
    """Claims may not: replicas can hold them on another node while the loader runs, and its fsGroup would change the
    owner of their files."""
    return "persistentVolumeClaim" not in volume
