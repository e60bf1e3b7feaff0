"""A pod behind the aggregation layer: certificate, Service and APIService of an external metrics API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import manifests
from tests.cluster.access import LocalCluster, Namespace, run

GROUP = "external.metrics.k8s.io"
CERTIFICATE, PORT = "/certificate", 8443


@contextmanager
def external_metrics(cluster: LocalCluster, namespace: Namespace, folder: Path, *command: str) -> Iterator[None]:
    """A pod `adapter` runs the command, which serves on PORT with tls.crt and tls.key of CERTIFICATE."""
    certificate, key = _make_certificate(folder, f"adapter.{namespace.name}.svc")
    data = {"tls.crt": certificate, "tls.key": key}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "certificate"}, "data": data}
    door = manifests.service("adapter", 443)
    door["spec"]["ports"][0]["targetPort"] = PORT
    namespace.apply(secret, _pod(cluster.image, command), door)
    namespace.wait_ready("adapter")
    behind = {"name": "adapter", "namespace": namespace.name}
    order = {"groupPriorityMinimum": 100, "versionPriority": 100}
    served = {"group": GROUP, "version": "v1beta1", "service": behind, "caBundle": certificate, **order}
    meta = {"name": f"v1beta1.{GROUP}"}
    namespace.apply({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": served})
    try:
        cluster.kubectl("wait", "--for=condition=Available", f"apiservice/v1beta1.{GROUP}", "--timeout=30s")
        yield
    finally:
        cluster.kubectl("delete", "apiservice", f"v1beta1.{GROUP}")


def _pod(image: str, command: tuple[str, ...]) -> manifests.Object:
    volumes = {"volumes": [{"name": "certificate", "secret": {"secretName": "certificate"}}]}
    mounts = [{"name": "certificate", "mountPath": CERTIFICATE}]
    get = {"path": f"/apis/{GROUP}/v1beta1", "port": PORT, "scheme": "HTTPS"}
    probe = {"httpGet": get, "periodSeconds": 1}
    more: dict[str, Any] = {"command": list(command), "volumeMounts": mounts, "readinessProbe": probe, "pod": volumes}
    return manifests.pod("adapter", manifests.pod_spec(image, **more))


def _make_certificate(folder: Path, host: str) -> tuple[str, str]:
    names = f"subjectAltName=DNS:{host}"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{folder}/tls.key")
    subject = ("-x509", "-days", "2", "-subj", "/CN=adapter", "-addext", names, "-out", f"{folder}/tls.crt")
    run("openssl", "req", *new_key, *subject)
    certificate, key = (folder / name for name in ("tls.crt", "tls.key"))
    return base64.b64encode(certificate.read_bytes()).decode(), base64.b64encode(key.read_bytes()).decode()
