"""Field paths of a CRD's schema and of the operator's dataclasses, to hold one against the other."""

from __future__ import annotations

import re
import types
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from tests.support.kube import Object


def crd_fields(schema: Object, path: str = "") -> set[str]:
    """Paths of all fields; lists and free-form maps are leaves."""
    found = set()
    for name, child in schema.get("properties", {}).items():
        below = crd_fields(child, f"{path}.{name}") if not child.get("x-kubernetes-preserve-unknown-fields") else set()
        found |= below or {f"{path}.{name}"}
    return found


def dataclass_fields(cls: Any, path: str = "") -> set[str]:
    hints, found = get_type_hints(cls), set()
    for item in fields(cls):
        name = re.sub(r"_(kv(?=_)|[a-z])", lambda match: match[1].upper(), item.name.rstrip("_"))
        kind = _plain(hints[item.name])
        found |= dataclass_fields(kind, f"{path}.{name}") if is_dataclass(kind) else {f"{path}.{name}"}
    return found


def _plain(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint
