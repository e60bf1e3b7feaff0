"""Kubernetes' camelCase objects to frozen dataclasses, and back without what is default."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def camel(name: str) -> str:
    """max_model_len → maxModelLen; target_kv_cache → targetKVCache; from_ → from."""
    return re.sub(r"_(kv(?=_)|[a-z])", lambda match: match[1].upper(), name.rstrip("_"))


def parse(cls: type[T], data: Mapping[str, Any]) -> T:
    """Fields that the API server knows and this operator does not (a newer CRD) are left out."""
    hints = get_type_hints(cls)
    known = {item.name: camel(item.name) for item in fields(cls)}  # type: ignore[arg-type]  # any dataclass
    return cls(**{name: _value(hints[name], data[key]) for name, key in known.items() if data.get(key) is not None})


def _value(hint: Any, value: Any) -> Any:
    kind = _plain(hint)
    if is_dataclass(kind) and isinstance(kind, type):
        return parse(kind, value)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(parse(inner, item) if is_dataclass(inner) and isinstance(inner, type) else item for item in value)
    return value


def _plain(hint: Any) -> Any:
    """`X | None` → X; other unions stay."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def template_inputs(value: Any) -> Any:
    """The fields that enter the pod template and differ from their defaults, as the user would write them."""
    if is_dataclass(value):
        chosen = {camel(item.name): template_inputs(getattr(value, item.name)) for item in fields(value)
                  if item.metadata.get("template", True) and getattr(value, item.name) != default(item)}  # fmt: skip
        return {key: inner for key, inner in chosen.items() if inner not in ({}, [], None)}
    if isinstance(value, tuple):
        return list(value)
    return value


def default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
