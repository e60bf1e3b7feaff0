"""spec.autoscaling out of a file, for what runs without a cluster and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from thranite_operator.autoscaling import schedules
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.parsing import camel, parse


class BadSpec(ValueError):
    """A file that holds no usable spec.autoscaling."""


def load_spec(path: Path) -> AutoscalingSpec:
    """From an InferenceService, or from the mapping under its spec.autoscaling. Raises BadSpec, OSError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadSpec(f"{path}: no YAML: {error}") from error
    if isinstance(data, Mapping) and "kind" in data:
        data = (data.get("spec") or {}).get("autoscaling")
        if data is None:
            raise BadSpec(f"{path}: its object has no spec.autoscaling")
    if not isinstance(data, Mapping):
        raise BadSpec(f"{path}: needs an InferenceService with spec.autoscaling, or that mapping alone")
    _check(AutoscalingSpec, data, str(path), "autoscaling")
    spec = parse(AutoscalingSpec, data)
    for problem in _problems(spec):
        raise BadSpec(f"{path}: {problem}")
    return spec


def _problems(spec: AutoscalingSpec) -> list[str]:
    found = [problem for schedule in spec.schedules if (problem := schedules.problem(schedule))]
    if spec.mode != "Internal":
        found.append(f"autoscaling.mode is {spec.mode}: only mode Internal decides anything")
    if not 1 <= spec.min_replicas <= spec.max_replicas:
        found.append("autoscaling needs 1 <= minReplicas <= maxReplicas (maxReplicas has no default)")
    for name in (
        "target_queue_depth",
        "target_kv_cache_utilization_percent",
        "interval_seconds",
        "drain_target_seconds",
    ):
        if getattr(spec, name) < 1:
            found.append(f"autoscaling.{camel(name)} must be at least 1")
    return found


def _check(cls: type, data: Any, path: str, place: str) -> None:
    """Every field is known and of its type. Raises BadSpec."""
    if not isinstance(data, Mapping):
        raise BadSpec(f"{path}: {place} must be a mapping")
    hints = get_type_hints(cls)
    known = {camel(item.name): hints[item.name] for item in fields(cls)}
    for key, value in data.items():
        if key not in known:
            raise BadSpec(f"{path}: {place}.{key} is no field; there are {', '.join(sorted(known))}")
        _check_value(known[key], value, path, f"{place}.{key}")


def _check_value(hint: Any, value: Any, path: str, place: str) -> None:
    if is_dataclass(hint) and isinstance(hint, type):
        _check(hint, value, path, place)
    elif hint in (int, bool, str):
        if type(value) is not hint:
            raise BadSpec(f"{path}: {place} must be {hint.__name__}, not {value!r}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(get_args(hint)[0], item, path, f"{place}[{index}]")
    elif value not in get_args(hint):
        raise BadSpec(f"{path}: {place} must not be {value!r}")
