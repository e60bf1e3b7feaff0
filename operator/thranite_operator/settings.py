"""What the operator was installed with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


def operator_version() -> str:
    try:
        return version("thranite")
    except PackageNotFoundError:
        return "unpackaged"  # run from a checkout's path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`namespace`: the operator's own, from which its pods reach the admin ports. `namespaces`: those it watches; none
    for all. `host`, `port`: of probes and metrics. Times are seconds."""

    runtime_image: str
    namespace: str = "thranite-system"
    monitoring_namespace: str = "monitoring"
    version: str = operator_version()
    namespaces: tuple[str, ...] = ()
    host: str = "0.0.0.0"
    port: int = 8080
    resync_seconds: float = 300.0
    workers: int = 8
