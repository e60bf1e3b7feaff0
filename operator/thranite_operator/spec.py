"""An InferenceService as plain data. Defaults are those of the CRD; a test holds the two together.

Fields marked OUTSIDE do not enter the pod template, so a change of them never makes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.parsing import parse

CacheType = Literal["None", "EmptyDir", "PVC"]
Quantity = str | int
OUTSIDE = {"template": False}


def outside(default: Any = None) -> Any:
    """A field that does not enter the pod template."""
    return field(default=default, metadata=OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSecret:
    name: str
    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeysSecret:
    name: str
    key: str = "api-keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    type: CacheType = "None"
    claim_name: str | None = None
    size: Quantity | None = outside()
    storage_class: str | None = outside()
    access_mode: str | None = outside()
    retain: bool = outside(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    uri: str
    revision: str | None = None
    name: str | None = None
    token_secret_ref: TokenSecret | None = None
    cache: Cache = Cache()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    image: str | None = None
    image_pull_secrets: tuple[Mapping[str, Any], ...] = ()
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    max_model_len: int | None = None
    max_batched_tokens: int | None = None
    max_sequences: int | None = None
    kv_cache_memory_fraction: str | None = None
    env: tuple[Mapping[str, Any], ...] = ()
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    gpus: int = 1
    gpu_resource_name: str = "nvidia.com/gpu"
    gpu_product: str | None = None
    cpu: Quantity | None = None
    memory: Quantity | None = None
    shared_memory: Quantity = "8Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    max_surge: int | str = 1
    max_unavailable: int | str = 0
    progress_deadline_seconds: int = 1800
    upgrade_policy: Literal["Pinned", "Latest"] = "Pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    timeout_seconds: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    topology_spread: tuple[Mapping[str, Any], ...] = ()
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    port: int = outside(80)
    type: str = outside("ClusterIP")
    annotations: Mapping[str, str] = field(default_factory=dict, metadata=OUTSIDE)
    api_keys_secret_ref: ApiKeysSecret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicySpec:
    enabled: bool = False
    from_: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMonitorSpec:
    enabled: bool = False
    interval: str = "15s"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    pod_monitor: PodMonitorSpec = PodMonitorSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[Mapping[str, Any], ...] = ()
    volume_mounts: tuple[Mapping[str, Any], ...] = ()
    containers: tuple[Mapping[str, Any], ...] = ()
    init_containers: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    model: Model
    engine: Engine = Engine()
    resources: Resources = Resources()
    replicas: int = outside(1)
    autoscaling: AutoscalingSpec | None = outside()
    rollout: Rollout = outside(Rollout())
    drain: Drain = Drain()
    scheduling: Scheduling = Scheduling()
    service: ServiceSpec = ServiceSpec()
    network_policy: NetworkPolicySpec = outside(NetworkPolicySpec())
    monitoring: Monitoring = outside(Monitoring())
    pod_template: PodTemplate = PodTemplate()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceService:
    """One object as read from the API. `status`: as last written, by whichever operator."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        return self.spec.model.name or self.name


def parse_service(obj: Mapping[str, Any]) -> InferenceService:
    meta = obj["metadata"]
    return InferenceService(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta["generation"],
        spec=parse(Spec, obj["spec"]),
        status=obj.get("status", {}),
    )
