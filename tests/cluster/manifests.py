"""Builders for what the tests apply: each pod satisfies the `restricted` profile."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
PORT = 8000
# Answers with its pod's name, and ends at once when it is told to.
SERVER = f"""
import http.server, os, signal, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (os.environ["POD"] + " " + os.environ.get("RELEASE", "")).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): print("asked for", self.path, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("serving", flush=True)
http.server.ThreadingHTTPServer(("", {PORT}), Answer).serve_forever()
"""
IDLE = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(3600)"


def restricted() -> Object:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_spec(image: str, script: str = IDLE, **more: Any) -> Object:
    """`more` goes to the container, except `pod`, which goes to the pod."""
    of_pod = more.pop("pod", {})
    name = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    environment = [name, *more.pop("env", [])]
    container = {"name": "main", "image": image, "command": ["python", "-c", script], "env": environment}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "securityContext": security,
        "terminationGracePeriodSeconds": 2,
        "enableServiceLinks": False,
        "containers": [{**container, "securityContext": restricted(), **more}],
        **of_pod,
    }


def pod(name: str, spec: Object) -> Object:
    meta = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def deployment(name: str, replicas: int, spec: Object, **more: Any) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": spec}
    wanted = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **more}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": wanted}


def service(name: str, port: int = 80) -> Object:
    spec = {"selector": {"app": name}, "ports": [{"port": port, "targetPort": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ready_probe(**more: Any) -> Object:
    return {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1, **more}


def server_spec(image: str, **more: Any) -> Object:
    return pod_spec(image, SERVER, **{"readinessProbe": ready_probe(), **more})


def gpus(count: int) -> Object:
    return {"limits": {"nvidia.com/gpu": count}}


def claim(name: str) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def account(name: str, *rules: Object) -> list[Object]:
    """A ServiceAccount, a Role and their binding."""
    group = "rbac.authorization.k8s.io"
    meta = {"name": name}
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": list(rules)}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name}],
    }
    return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}, role, binding]


def rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
