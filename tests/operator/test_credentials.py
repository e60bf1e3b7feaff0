"""The API server is reached as the credentials say."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kopf

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

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        proxy = f"http://127.0.0.1:{server.server_port}"
        info = kopf.ConnectionInfo(server="http://apiserver.invalid", token="a", proxy_url=proxy)

        async def read() -> object:
            async with KubeClient(lambda: info, "test") as client:
                return await client.read("/version")

        try:
            assert asyncio.run(read()) == {"major": "1"}
        finally:
            server.shutdown()
            thread.join()
    assert asked == [("http://apiserver.invalid/version", "Bearer a")]
