"""Ten times what a server can do, for a minute: goodput, queueing time, refusals and memory.

    python dev/bench/serve_overload.py [--seconds 60]

Capacity is the goodput of a closed loop just before, on the same server. The bars: goodput under overload within 10 %
of it; p99 time to the first token of admitted requests at most 1.5 times queue limit / capacity; everything else is a
429 with Retry-After; memory does not grow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve_client import LoadOrders
from serve_null import MODEL, null_server
from serve_process import Server, resident_bytes

from thranite.bench.http_stream import StreamRecord
from thranite.bench.online_figures import percentile
from thranite.bench.workers import START_SECONDS, run_workers

QUEUE_LIMIT = 80
OVERLOAD = 10
WARM_SECONDS = 10.0  # of the overload, before its goodput and memory count
CAPACITY_SECONDS = 10.0
GROWTH = 1.02
OPTIONS = ["--null-step-seconds", "0.02", "--max-num-seqs", "16", "--max-waiting-requests", str(QUEUE_LIMIT),
           "--high-priority-share", "0"]  # fmt: skip


def client(kind: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("serve_client.py")), kind]


def load(server: Server, kind: str, seconds: float, **fields: Any) -> tuple[float, list[StreamRecord]]:
    """(when it began, records)."""
    begin = time.monotonic() + START_SECONDS
    orders = LoadOrders(server.target.host, server.target.port, MODEL, 1, begin, seconds, **fields)
    (records,) = run_workers(client(kind), [asdict(orders)])
    return begin, [StreamRecord(**record) for record in records]


def goodput(records: Sequence[StreamRecord], begin: float, end: float) -> float:
    """Requests a second that came through whole."""
    return sum(record.ok and begin <= record.arrivals[-1] < end for record in records) / (end - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="thranite-overload-") as scratch,
        null_server(Path(scratch), *OPTIONS) as server,
    ):
        begin, records = load(server, "closed", CAPACITY_SECONDS + 2, clients=32)
        capacity = goodput(records, begin + 2, begin + 2 + CAPACITY_SECONDS)
        memory: list[int] = []

        def watch() -> None:
            time.sleep(START_SECONDS + WARM_SECONDS)
            memory.append(resident_bytes(server.pids))
            time.sleep(args.seconds - WARM_SECONDS - 0.5)
            memory.append(resident_bytes(server.pids))

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin, records = load(server, "open", args.seconds, rate=OVERLOAD * capacity)
        watcher.join()
        code = server.stop()
    return report(capacity, records, begin + WARM_SECONDS, begin + args.seconds, memory, code)


def report(
    capacity: float, records: Sequence[StreamRecord], begin: float, end: float, memory: Sequence[int], code: int
) -> int:
    good = goodput(records, begin, end)
    first = percentile([record.arrivals[0] - record.started for record in records if record.ok], 0.99)
    bound = 1.5 * QUEUE_LIMIT / capacity
    refused = [record for record in records if record.status == 429 and record.retry_after]
    lost = [record for record in records if not record.ok and record.status != 429]
    growth = memory[1] / memory[0]
    told = sorted(record.retry_after or 0.0 for record in refused)
    print(f"capacity {capacity:.1f} requests/s; offered {len(records) / (end - begin + WARM_SECONDS):.0f}")
    print(f"goodput {good:.1f} requests/s, {good / capacity:.3f} of capacity (0.9 to 1.1)")
    print(f"p99 TTFT of admitted requests {first:.2f} s (at most {bound:.2f})")
    print(f"{len(refused)} refused with 429, to wait {told[0]:.0f} to {told[-1]:.0f} s; {len(lost)} lost otherwise (0)")
    print(f"memory {memory[0] / 2**20:.1f} MiB -> {memory[1] / 2**20:.1f} MiB, {growth:.3f} (at most {GROWTH})")
    held = [0.9 <= good / capacity <= 1.1, first <= bound, bool(refused), not lost, growth <= GROWTH, code == 0]
    if lost:
        print(f"the first lost: {lost[0].status} {lost[0].error}")
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
