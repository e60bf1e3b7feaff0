"""How the replicas are reached: Services, NetworkPolicy, PodMonitor."""

from __future__ import annotations

from thranite_operator import names
from thranite_operator.kinds import NETWORK_POLICY, POD_MONITOR, SERVICE, Object
from thranite_operator.render.objects import child
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, Spec

NAMESPACE_NAME = "kubernetes.io/metadata.name"


def api_service(service: InferenceService) -> Object:
    """The API alone; the admin port is in no Service."""
    wanted = service.spec.service
    spec = {
        "type": wanted.type,
        "selector": names.selector(service.name),
        "ports": [_service_port(wanted.port, scheme(service.spec))],
    }
    obj = child(SERVICE, service, service.name, names.ENGINE, spec=spec)
    if wanted.annotations:
        obj["metadata"]["annotations"] = dict(wanted.annotations)
    return obj


def headless_service(service: InferenceService) -> Object:
    """An address for each ready replica."""
    spec = {
        "clusterIP": "None",
        "selector": names.selector(service.name),
        "ports": [_service_port(names.HTTP_PORT, scheme(service.spec))],
    }
    return child(SERVICE, service, names.headless(service.name), names.ENGINE, spec=spec)


def scheme(spec: Spec) -> str:
    """https where the extra arguments, or the environment, bring a certificate."""
    given = [arg.partition("=")[0] for arg in spec.engine.extra_args]
    tls = "--ssl-certfile" in given or any(item.get("name") == "THRANITE_SSL_CERTFILE" for item in spec.engine.env)
    return "https" if tls else "http"


def _service_port(number: int, protocol: str) -> Object:
    return {"name": "http", "port": number, "targetPort": "http", "protocol": "TCP", "appProtocol": protocol}


def network_policy(service: InferenceService, settings: Settings) -> Object | None:
    wanted = service.spec.network_policy
    if not wanted.enabled:
        return None
    clients: Object = {"ports": [_policy_port(names.HTTP_PORT)]}
    if wanted.from_:
        clients["from"] = list(wanted.from_)
    operator = {"matchLabels": {names.APP: "thranite-operator"}}
    administrators = [
        {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: settings.namespace}}, "podSelector": operator},
        {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: settings.monitoring_namespace}}},
    ]
    admin = {"ports": [_policy_port(names.ADMIN_PORT)], "from": administrators}
    spec = {
        "podSelector": {"matchLabels": names.selector(service.name)},
        "policyTypes": ["Ingress"],
        "ingress": [clients, admin],
    }
    return child(NETWORK_POLICY, service, service.name, names.ENGINE, spec=spec)


def _policy_port(number: int) -> Object:
    return {"port": number, "protocol": "TCP"}


def pod_monitor(service: InferenceService) -> Object | None:
    wanted = service.spec.monitoring.pod_monitor
    if not wanted.enabled:
        return None
    spec = {
        "selector": {"matchLabels": names.selector(service.name)},
        "podMetricsEndpoints": [{"port": "admin", "path": "/metrics", "interval": wanted.interval}],
    }
    obj = child(POD_MONITOR, service, service.name, names.ENGINE, spec=spec)
    obj["metadata"]["labels"] = {**wanted.labels, **obj["metadata"]["labels"]}
    return obj
