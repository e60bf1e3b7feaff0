"""What the operator was installed with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


def operator_version() -> str:
    try:
        return version("thranite")
    except PackageNotFoundError:
        return "unpackaged"  # run from a checkout's path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`namespace`: the operator's own, from which its pods reach the admin ports. Times are seconds."""

    runtime_image: str
    namespace: str = "thranite-system"
    monitoring_namespace: str = "monitoring"
    version: str = operator_version()
    resync_seconds: float = 300.0
    workers: int = 8
