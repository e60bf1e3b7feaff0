"""A plain client of the API server, without any library's retries: it sees every fault as it is."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Object = dict[str, Any]
# What a client sees when the other side goes away instead of answering.
Broken = (OSError, http.client.HTTPException)


class PlainClient:
    """One connection a call. `user=False` comes without a certificate."""

    def __init__(self, kubeconfig: Path, folder: Path, user: bool = True, agent: str = "plain") -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, credentials = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._host, _, port = cluster["server"].removeprefix("https://").partition(":")
        self._port = int(port)
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._agent = agent
        if user:
            both = folder / "client.pem"
            parts = (credentials["client-certificate-data"], credentials["client-key-data"])
            both.write_bytes(b"\n".join(base64.b64decode(part) for part in parts))
            self._context.load_cert_chain(both)

    def _open(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=timeout)

    def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        timeout: float = 10,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Object, http.client.HTTPMessage]:
        connection = self._open(timeout)
        try:
            content = json.dumps(body) if body is not None else None
            sent = {"Content-Type": "application/json", "User-Agent": self._agent, **(headers or {})}
            connection.request(method, path, content, sent)
            with connection.getresponse() as answer:
                text = answer.read()
                return answer.status, json.loads(text or "{}"), answer.headers
        finally:
            connection.close()

    def watch(self, path: str, timeout: float = 10) -> Iterator[Object]:
        """Events until the other side ends the watch; TimeoutError if it says nothing for that long."""
        connection = self._open(timeout)
        try:
            connection.request("GET", f"{path}?watch=1", headers={"User-Agent": self._agent})
            with connection.getresponse() as answer:
                for line in answer:
                    yield json.loads(line)
        finally:
            connection.close()
