"""What all children share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thranite_operator import names
from thranite_operator.kinds import Kind, Object
from thranite_operator.spec import InferenceService


def child(kind: Kind, service: InferenceService, name: str, component: str, **fields: Any) -> Object:
    """A child without its owner, see `owned`."""
    meta = {"name": name, "namespace": service.namespace, "labels": names.labels(service.name, component)}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, **fields}


def owned(obj: Object, service: InferenceService) -> Object:
    """Garbage collection ends it with its owner; nothing waits for it."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {**obj, "metadata": {**obj["metadata"], "ownerReferences": [owner]}}


def compact(value: Any) -> Any:
    """Without None and without maps and lists that hold nothing; `emptyDir: {}` and its like must be added later."""
    if isinstance(value, Mapping):
        inner = {key: compact(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item not in (None, {}, [])}
    if isinstance(value, list | tuple):
        return [compact(item) for item in value]
    return value
