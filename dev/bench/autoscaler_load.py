"""What scraping, deciding and telling metrics for thousands of pods costs, without a cluster.

A process that answers as an idle runtime does stands for all pods, each under a loopback address of its own (Linux).
Reconciles are not part of it: tests/e2e/test_autoscaling_scale.py has the whole operator.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass

from thranite.server.metrics import MetricsSnapshot, engine_families, render
from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.autoscaling.exposition import FAMILIES
from thranite_operator.autoscaling.live import LiveMetrics
from thranite_operator.autoscaling.scraper import Scraper
from thranite_operator.credentials import connection
from thranite_operator.kube import KubeClient
from thranite_operator.metrics import OperatorMetrics
from thranite_operator.pods import Pod
from thranite_operator.spec import InferenceService, parse_service

REPLICAS = 10  # of each service
INTERVAL = 15
PORT = 18001
LOOK_SECONDS = 5.0
CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Cost:
    """`oldest`: the highest age of a scrape in use at any look, in seconds."""

    wall: float
    cpu: float
    scrapes: int
    errors: int
    oldest: float


def answer() -> None:
    """Serves until it is killed."""
    body, kind = render(engine_families(MetricsSnapshot("m")), FAMILIES)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head.encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # it was given up
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(one, "0.0.0.0", PORT, backlog=1024)
        await server.serve_forever()

    asyncio.run(serve())


def service(number: int) -> InferenceService:
    autoscaling = {"minReplicas": REPLICAS, "maxReplicas": 2 * REPLICAS, "intervalSeconds": INTERVAL}
    spec = {"model": {"uri": "file:///m"}, "replicas": REPLICAS, "autoscaling": autoscaling}
    meta = {"name": f"s{number}", "namespace": "many", "uid": f"s{number}", "generation": 1}
    return parse_service({"metadata": meta, "spec": spec})


def pods(number: int) -> list[Pod]:
    found = []
    for index in range(number * REPLICAS, (number + 1) * REPLICAS):
        uid, address = f"p{index}", f"127.{index // 250 + 1}.{index % 250 + 1}.1"
        found.append(Pod(uid, uid, "engine", "t", "Running", ready=True, created=CREATED, address=address))
    return found


async def measured(count: int, seconds: float) -> Cost:
    # Idle services keep their size: the API server is never asked.
    scraper = Scraper(port=PORT)
    async with KubeClient(connection, "bench") as client:
        autoscaler = Autoscaler(client, scraper, lambda key: None)
        metrics = OperatorMetrics(lambda: 0, dict)
        metrics.add(LiveMetrics(autoscaler))
        for number in range(count // REPLICAS):
            autoscaler.observe(service(number), pods(number))
        await asyncio.sleep(INTERVAL + LOOK_SECONDS)  # each pod has answered
        began, cpu, scrapes, oldest = time.monotonic(), time.process_time(), scraper.scrapes, 0.0
        while time.monotonic() - began < seconds:
            await asyncio.sleep(LOOK_SECONDS)
            metrics.render()
            now = scraper.now()
            oldest = max(oldest, *(age for _, follower in autoscaler.followers() for age in follower.ages(now)))
        wall, spent = time.monotonic() - began, time.process_time() - cpu
        await autoscaler.close()
        return Cost(wall, spent, scraper.scrapes - scrapes, scraper.errors, oldest)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=5000, help="how many, of ten a service (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of measuring (default %(default)s)")
    args = parser.parse_args(argv)
    process = multiprocessing.get_context("spawn").Process(target=answer, daemon=True)
    process.start()
    time.sleep(5)  # it imports the runtime's metrics
    try:
        cost = asyncio.run(measured(args.pods, args.seconds))
    finally:
        process.kill()
        process.join()
    print(
        f"{args.pods} pods, {cost.wall:.1f} s of wall time: {cost.cpu:.1f} s of CPU time "
        f"({cost.cpu / cost.wall:.3f} of a core), {cost.scrapes} scrapes, {cost.errors} failed, "
        f"oldest scrape {cost.oldest:.1f} s"
    )


if __name__ == "__main__":
    main()
