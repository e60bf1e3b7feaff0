"""Whether a child must be written: the planned fields against the observed object, never an annotation alone.

Two things ask for a write: a planned field that the object lacks or has otherwise, and a field that this operator
once applied and no longer plans. Fields of others (defaults, status, an autoscaler's annotations) ask for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thranite_operator.kinds import View
from thranite_operator.names import FIELD_MANAGER
from thranite_operator.quantities import same_quantity

# Lists whose items the API server merges by a key, named as the field that holds them.
MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
    "ports": ("port", "containerPort", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
# What the API server fills into lists and maps that are owned as a whole.
DEFAULTS: Mapping[str, Any] = {"protocol": "TCP", "apiVersion": "v1", "expirationSeconds": 3600, "divisor": "0"}
QUANTITY_MAPS = ("limits", "requests")
QUANTITIES = ("sizeLimit", "storage")


def needs_write(planned: View, observed: View | None) -> bool:
    return observed is None or bool(next(differences(planned, observed), None))


def differences(planned: View, observed: View) -> Iterator[str]:
    """Paths of what differs, for logs and tests."""
    yield from _missing(planned, observed, "", "")
    for entry in observed.get("metadata", {}).get("managedFields", ()):
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            yield from _abandoned(entry.get("fieldsV1", {}), planned, observed, "")


def _missing(planned: Any, observed: Any, path: str, field: str) -> Iterator[str]:
    """Planned and not observed. `field`: the name of the field that holds the value."""
    if isinstance(planned, Mapping) and isinstance(observed, Mapping):
        for key, value in planned.items():
            if key not in observed:
                if value:  # the API server drops many an empty value
                    yield f"{path}.{key}"
            elif field in QUANTITY_MAPS or key in QUANTITIES:
                if not same_quantity(value, observed[key]):
                    yield f"{path}.{key}"
            else:
                yield from _missing(value, observed[key], f"{path}.{key}", key)
    elif _is_list(planned) and _is_list(observed):
        yield from _missing_items(planned, observed, path, field)
    elif planned != observed:
        yield path


def _missing_items(planned: Sequence[Any], observed: Sequence[Any], path: str, field: str) -> Iterator[str]:
    keys = MERGE_KEYS.get(field)
    if keys is None or not all(isinstance(item, Mapping) for item in planned):
        if len(planned) != len(observed):
            yield path
        for index, (ours, theirs) in enumerate(zip(planned, observed, strict=False)):
            yield from _missing(ours, theirs, f"{path}[{index}]", "")
        return
    known = {_identity(item, keys): item for item in observed}
    for item in planned:
        identity = _identity(item, keys)
        if identity not in known:
            yield f"{path}[{identity}]"
        else:
            yield from _missing(item, known[identity], f"{path}[{identity}]", "")


def _identity(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key, DEFAULTS.get(key)) for key in keys)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _abandoned(owned: Mapping[str, Any], planned: Any, observed: Any, path: str) -> Iterator[str]:
    """Applied by us before and not planned. `owned` is a FieldsV1 tree: f:NAME a field, k:{…} an item by its keys,
    v:VALUE an item of a set; what has nothing below it is owned as a whole."""
    for mark, inner in owned.items():
        kind, _, name = mark.partition(":")
        if kind == "f":
            if not isinstance(planned, Mapping) or name not in planned:
                yield f"{path}.{name}"
            else:
                ours, theirs = planned[name], observed.get(name)
                below = _abandoned(inner, ours, theirs, f"{path}.{name}")
                yield from below if inner else _surplus(ours, theirs, f"{path}.{name}")
        elif kind == "k":
            keys = json.loads(name)
            item = _find(planned, keys)
            if item is None:
                yield f"{path}[{name}]"
            else:
                yield from _abandoned(inner, item, _find(observed, keys), f"{path}[{name}]")
        elif kind == "v" and json.loads(name) not in (planned or ()):
            yield f"{path}[{name}]"


def _surplus(planned: Any, observed: Any, path: str) -> Iterator[str]:
    """More than planned in a value that is ours as a whole, but for what the API server itself fills in."""
    if isinstance(planned, Mapping) and isinstance(observed, Mapping):
        for key, value in observed.items():
            if key in planned:
                yield from _surplus(planned[key], value, f"{path}.{key}")
            elif DEFAULTS.get(key) != value:
                yield f"{path}.{key}"
    elif _is_list(planned) and _is_list(observed):
        for index, (ours, theirs) in enumerate(zip(planned, observed, strict=False)):
            yield from _surplus(ours, theirs, f"{path}[{index}]")


def _find(planned: Any, keys: Mapping[str, Any]) -> Any:
    if not _is_list(planned):
        return None
    return next((item for item in planned if all(item.get(key, value) == value for key, value in keys.items())), None)
