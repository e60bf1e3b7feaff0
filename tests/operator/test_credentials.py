"""The API server is reached as the credentials say."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler

import kopf

from tests.support.http_stub import http_stub
from thranite_operator.kube import KubeClient


def test_the_connection_s_proxy_is_used() -> None:
    asked: list[tuple[str, str | None]] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", "14")
            self.end_headers()
            self.wfile.write(b'{"major": "1"}')

        def log_message(self, *_: object) -> None:
            return

    with http_stub(Proxy) as port:
        proxy = f"http://127.0.0.1:{port}"
        info = kopf.ConnectionInfo(server="http://apiserver.invalid", token="a", proxy_url=proxy)

        async def read() -> object:
            async with KubeClient(lambda: info, "test") as client:
                return await client.read("/version")

        assert asyncio.run(read()) == {"major": "1"}
    assert asked == [("http://apiserver.invalid/version", "Bearer a")]
