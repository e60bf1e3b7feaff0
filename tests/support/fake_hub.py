"""A model hub on localhost: what a repository holds, and its files, with ranges.

Transfers can be made to break off, and every request is on record.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from urllib.parse import unquote, urlsplit

from tests.support.http_stub import http_stub

PIECE_BYTES = 1 << 16
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Seen:
    """One request: method, path, and the byte its Range starts at (None: no Range)."""

    method: str
    path: str
    start: int | None
    authorization: str | None


@dataclass
class FakeHub:
    """`break_after[name]`: how many bytes each coming transfer of that file sends before the connection closes.

    It closes only when `release` is set, so that tests can look at a transfer, or kill its reader, halfway.
    """

    model: str
    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    damage: set[str] = field(default_factory=set)  # files whose next transfer brings zeros
    slow: set[str] = field(default_factory=set)  # files that come at 300 KiB a second
    token: str | None = None
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    commit: str = COMMIT
    lock: Lock = field(default_factory=Lock)
    release: Event = field(default_factory=Event)

    def transfers(self, name: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.endswith(f"/{name}")]

    def next_break(self, name: str) -> int | None:
        with self.lock:
            plan = self.break_after.get(name)
            return plan.pop(0) if plan else None

    def info(self) -> bytes:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": etag(data)}
            | ({"lfs": {"size": len(data), "sha256": etag(data), "pointerSize": 134}} if len(data) > 1024 else {})
            for name, data in self.files.items()
        ]
        fields = {"id": self.model, "modelId": self.model, "sha": self.commit, "siblings": siblings, "tags": []}
        return json.dumps(fields).encode()


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def fake_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub`; its `url` is what HF_ENDPOINT must be."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with http_stub(Handler) as port:
        hub.url = f"http://127.0.0.1:{port}"
        try:
            yield hub
        finally:
            hub.release.set()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are on record in `hub.seen`."""

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        start = _range_start(self.headers.get("Range"))
        with hub.lock:
            hub.seen.append(Seen(self.command, path, start, self.headers.get("Authorization")))
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._error(401, "GatedRepo")
        elif match := re.fullmatch(rf"/api/models/{hub.model}(?:/revision/(.+))?", path):
            if match[1] in (None, *hub.revisions):
                self._send(200, hub.info(), {"Content-Type": "application/json"}, body)
            else:
                self._error(404, "RevisionNotFound")
        elif match := re.fullmatch(rf"/{hub.model}/resolve/([^/]+)/(.+)", path):
            self._file(match[2], start, body)
        else:
            self._error(404, "RepoNotFound")

    def _file(self, name: str, start: int | None, body: bool) -> None:
        data = self.hub.files.get(name)
        if data is None:
            self._error(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if name in self.hub.damage and body:
            self.hub.damage.remove(name)
            data = bytes(len(data))
        limit = self.hub.next_break(name) if body else None
        self._send(200 if start is None else 206, data[start or 0 :], headers, body, limit)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code}, body=False)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], body: bool, limit: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.path.rpartition("/")[2] in self.hub.slow:
            for start in range(0, len(data), PIECE_BYTES):
                self.wfile.write(data[start : start + PIECE_BYTES])
                time.sleep(0.2)
        elif body:
            self.wfile.write(data[:limit])
        if limit is not None:
            self.wfile.flush()
            self.hub.release.wait(60)
            self.close_connection = True


def _range_start(header: str | None) -> int | None:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return int(match[1]) if match else None
