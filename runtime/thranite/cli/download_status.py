"""What a running download answers over HTTP: progress as metrics, and probes for the Job it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from thranite.loader.download import Progress
from thranite.server.metrics import DownloadSnapshot, download_families, render

PLAIN = "text/plain; charset=utf-8"


def answer(path: str, model: str, progress: Progress) -> tuple[int, bytes, str]:
    """Status, body and content type of a GET."""
    done, total = progress.done_bytes, progress.total_bytes
    if path == "/metrics":
        snapshot = DownloadSnapshot(model, done, total, progress.done_files, progress.total_files)
        return 200, *render(download_families(snapshot))
    if path == "/livez":
        return 200, b"alive\n", PLAIN
    if path in ("/startupz", "/readyz"):
        text = "downloaded\n" if progress.finished else f"downloading: {done} of {total} bytes\n"
        return 200 if progress.finished else 503, text.encode(), PLAIN
    return 404, b"no such path\n", PLAIN


@contextmanager
def served(model: str, progress: Progress, host: str, port: int) -> Iterator[int]:
    """Answer on `port` (0: any free one) for the length of the block; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, content_type = answer(self.path.split("?")[0], model, progress)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes every few seconds are no news."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = Thread(target=server.serve_forever, name="download-status", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
