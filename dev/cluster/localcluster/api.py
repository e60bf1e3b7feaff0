"""A small client of the cluster's API server: JSON over verified TLS with a client certificate."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any

from .pki import CLUSTER_CA, Pki
from .plan import API_PORT
from .shell import patience

Object = dict[str, Any]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
FIELD_MANAGER = "thranite-cluster"
IRREGULAR_PLURALS = {"StorageClass": "storageclasses", "EndpointSlice": "endpointslices"}


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def object_path(item: Object) -> str:
    group = item["apiVersion"]
    prefix = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    meta = item["metadata"]
    space = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    plural = IRREGULAR_PLURALS.get(item["kind"], item["kind"].lower() + "s")
    return f"{prefix}{space}/{plural}/{meta['name']}"


class Api:
    """Not for several threads at once: it keeps one connection."""

    def __init__(self, pki: Pki, user: str, host: str = "127.0.0.1", port: int = API_PORT) -> None:
        self._context = ssl.create_default_context(cafile=str(pki.certificate(CLUSTER_CA)))
        self._context.load_cert_chain(str(pki.certificate(user)), str(pki.key(user)))
        self._address = (host, port)
        self._connection = self._connect(30)

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self._address, context=self._context, timeout=timeout * patience())

    def call(self, method: str, path: str, body: Object | None = None, content: str = "application/json") -> Object:
        text = json.dumps(body) if body is not None else None
        headers = {"Content-Type": content, "User-Agent": FIELD_MANAGER}
        try:
            self._connection.request(method, path, text, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        if response.status >= 400:
            raise ApiError(response.status, answer.decode(errors="replace"))
        return _parsed(answer, response.headers.get_content_type())

    def apply(self, item: Object) -> Object:
        return self.call("PATCH", f"{object_path(item)}?fieldManager={FIELD_MANAGER}&force=true", item, APPLY)

    def ready(self) -> bool:
        try:
            self.call("GET", "/readyz")
        except (OSError, http.client.HTTPException, ApiError):
            return False
        return True

    def watch(self, path: str, version: str, seconds: int) -> Iterator[Object]:
        """Events until the server ends the watch."""
        connection = self._connect(seconds + 30)
        query = f"?watch=1&resourceVersion={version}&timeoutSeconds={seconds}"
        try:
            connection.request("GET", path + query, headers={"User-Agent": FIELD_MANAGER})
            with connection.getresponse() as response:
                if response.status >= 400:
                    raise ApiError(response.status, response.read().decode(errors="replace"))
                for line in response:
                    yield json.loads(line)
        finally:
            connection.close()


def _parsed(answer: bytes, kind: str) -> Object:
    if kind != "application/json":
        return {"text": answer.decode(errors="replace")}
    parsed: Object = json.loads(answer)
    return parsed
