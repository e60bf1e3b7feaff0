"""A small synchronous client of the Kubernetes API for tests; it shares nothing with the operator's own."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

Object = dict[str, Any]

PATHS = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "Namespace": "/api/v1/namespaces",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "InferenceService": "/apis/thranite.dev/v1alpha1/namespaces/{}/inferenceservices",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ControllerRevision": "/apis/apps/v1/namespaces/{}/controllerrevisions",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "PodMonitor": "/apis/monitoring.coreos.com/v1/namespaces/{}/podmonitors",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Event": "/api/v1/namespaces/{}/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Pod": "/api/v1/namespaces/{}/pods",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
}


class ApiRefusal(Exception):
    def __init__(self, response: httpx.Response) -> None:
        body = response.json() if "json" in response.headers.get("content-type", "") else {}
        self.code = response.status_code
        self.message = str(body.get("message", response.text))
        super().__init__(f"{self.code}: {self.message}")


class KubeApi:
    def __init__(self, url: str, ca: Path, token: str) -> None:
        trusted = ssl.create_default_context(cafile=str(ca))
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=url, verify=trusted, headers=headers, timeout=30)

    def __enter__(self) -> KubeApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def call(self, method: str, path: str, body: object = None, **options: Any) -> Object:
        response = self.client.request(method, path, json=body, **options)
        if response.status_code >= 400:
            raise ApiRefusal(response)
        answer: Object = response.json()
        return answer

    def get(self, kind: str, namespace: str, name: str) -> Object:
        return self.call("GET", f"{PATHS[kind].format(namespace)}/{name}")

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return self.get(kind, namespace, name)
        except ApiRefusal as refusal:
            if refusal.code == 404:
                return None
            raise

    def items(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        found: list[Object] = self.call("GET", PATHS[kind].format(namespace), params={"labelSelector": selector})[
            "items"
        ]
        return found

    def create(self, body: Object, *, dry_run: bool = False) -> Object:
        namespace = body["metadata"].get("namespace", "")
        params = {"dryRun": "All"} if dry_run else {}
        return self.call("POST", PATHS[body["kind"]].format(namespace), body, params=params)

    def merge(self, kind: str, namespace: str, name: str, patch: Object, subresource: str = "") -> Object:
        path = f"{PATHS[kind].format(namespace)}/{name}{subresource and f'/{subresource}'}"
        return self.call("PATCH", path, patch, headers={"Content-Type": "application/merge-patch+json"})

    def replace(self, body: Object, *, dry_run: bool = False) -> Object:
        meta = body["metadata"]
        params = {"dryRun": "All"} if dry_run else {}
        path = f"{PATHS[body['kind']].format(meta.get('namespace', ''))}/{meta['name']}"
        return self.call("PUT", path, body, params=params)

    def delete(self, kind: str, namespace: str, name: str) -> Object:
        return self.call("DELETE", f"{PATHS[kind].format(namespace)}/{name}")
