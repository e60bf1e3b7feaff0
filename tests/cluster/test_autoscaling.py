"""The aggregation layer and the HorizontalPodAutoscaler: a metrics API that a pod serves scales a Deployment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import manifests
from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.cluster.aggregation import external_metrics

pytestmark = pytest.mark.cluster
# The smallest external metrics API: one metric, `queue`, whose value is in a file.
ADAPTER = """
import http.server, json, os, signal, ssl, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        head = {"apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {}}
        if self.path.split("?")[0].endswith("/queue"):
            value = open("/tmp/value").read()
            item = {"metricName": "queue", "metricLabels": {}, "timestamp": "2024-01-01T00:00:00Z", "value": value}
            body = {**head, "kind": "ExternalMetricValueList", "items": [item]}
        elif self.path.rstrip("/").endswith("/v1beta1"):
            resource = {"name": "queue", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": head["apiVersion"],
                    "resources": [{**resource, "singularName": ""}]}
        else:
            return self.send_error(404)
        text = json.dumps(body).encode()
        self.send_response(200); self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text))); self.end_headers(); self.wfile.write(text)
open("/tmp/value", "w").write("10")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = http.server.ThreadingHTTPServer(("", 8443), Answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/certificate/tls.crt", "/certificate/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture
def metrics(local: LocalCluster, namespace: Namespace, tmp_path: Path) -> Iterator[None]:
    with external_metrics(local, namespace, tmp_path, "python", "-c", ADAPTER):
        yield


@pytest.mark.usefixtures("metrics")
def test_a_metric_from_a_pod_scales_a_deployment(local: LocalCluster, namespace: Namespace) -> None:
    target = {"type": "AverageValue", "averageValue": "10"}
    external = {"type": "External", "external": {"metric": {"name": "queue"}, "target": target}}
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    spec = {"scaleTargetRef": scaled, "minReplicas": 1, "maxReplicas": 4, "metrics": [external]}
    meta = {"name": "web"}
    autoscaler = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec}
    namespace.apply(manifests.deployment("web", 1, manifests.pod_spec(local.image)), autoscaler)

    def replicas() -> int:
        return int(namespace.get("deployment", "web")["spec"]["replicas"])

    namespace.kubectl("exec", "adapter", "--", "sh", "-c", "echo -n 30 > /tmp/value")
    eventually(lambda: replicas() == 3, what="three replicas for a queue of 30")
    namespace.kubectl("exec", "adapter", "--", "sh", "-c", "echo -n 10 > /tmp/value")
    eventually(lambda: replicas() == 1, what="one replica again")
