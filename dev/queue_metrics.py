"""An external metrics API for HorizontalPodAutoscalers: the requests of an InferenceService, summed over its replicas.

    python dev/queue_metrics.py --certificate FOLDER    # holds tls.crt and tls.key, as a Secret of type tls does

Behind an APIService `v1beta1.external.metrics.k8s.io`. The label `service` chooses the InferenceService. Replicas are
found in DNS, through the headless Service, and asked on their admin port at each call: nothing is cached. A replica
that does not answer fails the call, since a sum without it would read as less load. It does not check who asks: it
tells counts alone, to whomever reaches it.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from thranite_operator import names
from thranite_operator.autoscaling.exposition import QUERY, RUNNING, WAITING, Incomplete, Reading, parse

VERSION = "external.metrics.k8s.io/v1beta1"
UNFINISHED = "thranite_requests_unfinished"
METRICS: dict[str, Callable[[Reading], float]] = {
    WAITING: lambda reading: reading.waiting,
    RUNNING: lambda reading: reading.running,
    UNFINISHED: lambda reading: reading.waiting + reading.running,
}
TIMEOUT_SECONDS = 2.0
AT_ONCE = 32
_VALUE = re.compile(rf"/apis/{re.escape(VERSION)}/namespaces/([a-z0-9-]+)/([^/]+)")
_SELECTOR = re.compile(r"service==?([a-z0-9.-]+)")
Readings = Callable[[str, str], Sequence[Reading]]


class Refused(Exception):
    """What the caller reads, as a Status with this code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(target: str, readings: Readings) -> dict[str, Any]:
    """The object at a path and query; `readings` takes a namespace and an InferenceService's name. Raises Refused."""
    url = urlsplit(target)
    if url.path.rstrip("/") == f"/apis/{VERSION}":
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": _resources()}
    found = _VALUE.fullmatch(url.path)
    if found is None:
        raise Refused(404, f"there is no {url.path}")
    namespace, metric = found.groups()
    if metric not in METRICS:
        raise Refused(404, f"there is no metric {metric}; known are {', '.join(METRICS)}")
    selector = parse_qs(url.query).get("labelSelector", [""])[0]
    chosen = _SELECTOR.fullmatch(selector)
    if chosen is None:
        raise Refused(400, f"the selector must be service=NAME of an InferenceService, not {selector!r}")
    total = sum(map(METRICS[metric], readings(namespace, chosen[1])))
    item = {"metricName": metric, "metricLabels": {"service": chosen[1]}, "timestamp": _now(), "value": f"{total:.0f}"}
    return {"kind": "ExternalMetricValueList", "apiVersion": VERSION, "metadata": {}, "items": [item]}


def _resources() -> list[dict[str, Any]]:
    shape = {"singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
    return [{"name": metric, **shape} for metric in METRICS]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def of_ready_replicas(namespace: str, service: str) -> list[Reading]:
    """Raises Refused where none is ready, or one does not answer."""
    host = f"{names.headless(service)}.{namespace}.svc"
    try:
        found = socket.getaddrinfo(host, names.ADMIN_PORT, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Refused(503, f"{host} has no address, so no replica is ready: {error}") from error
    return ask({str(address[0]) for *_, address in found}, names.ADMIN_PORT)


def ask(addresses: set[str], port: int) -> list[Reading]:
    """All or, with Refused, none."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(partial(_ask_one, port=port), sorted(addresses)))


def _ask_one(address: str, port: int) -> Reading:
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics?{QUERY}", timeout=TIMEOUT_SECONDS) as response:
            return parse(response.read())
    except (OSError, HTTPException, Incomplete) as error:
        raise Refused(503, f"{host}:{port} does not tell its load: {error}") from error


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            code, body = 200, answer(self.path, of_ready_replicas)
        except Refused as refusal:
            code, status = refusal.code, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
            body = {**status, "message": str(refusal), "code": code}
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificate", type=Path, required=True, metavar="FOLDER", help="with tls.crt and tls.key")
    parser.add_argument("--port", type=int, default=8443)
    args = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate / "tls.crt", args.certificate / "tls.key")
    server = ThreadingHTTPServer(("", args.port), Handler)
    # The handshake is the handler's, in its own thread: a silent caller holds up nobody.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
