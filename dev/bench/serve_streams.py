"""Thousands of slow streams: what one event costs and how late it comes, beside a bare handler in the same run.

    python dev/bench/serve_streams.py [--streams 2000] [--seconds 15] [--repeats 2]

Each stream brings a token every 0.2 s, all at the same ticks. Costs are the CPU time of all the server's processes in a
window when every stream is open, by the events of that window; delays are from the tick to the client. Ticks are seen
from outside: one stream runs alone first, and its earliest events, which wait for nobody, fix their phase.
The bars: no error, cost and p99 delay at most 3 times the bare handler's.
"""

from __future__ import annotations

import argparse
import math
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serve_client import StreamOrders
from serve_null import MODEL, null_server
from serve_process import cpu_seconds, process_tree

from thranite.bench.http_stream import StreamRecord, Target, completion_body, encode_request
from thranite.bench.online_figures import percentile
from thranite.bench.workers import run_workers

TICK = 0.2
LONE_SECONDS, OPEN_SECONDS, SETTLE_SECONDS = 3.0, 6.0, 2.0
BAR = 3.0
CLIENT = [sys.executable, str(Path(__file__).with_name("serve_client.py")), "streams"]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one server: errors, events in the window, CPU seconds of its processes there, delays in seconds."""

    errors: int
    events: int
    cpu: float
    p50: float
    p99: float

    @property
    def cost(self) -> float:
        """CPU microseconds an event."""
        return 1e6 * self.cpu / self.events


def delays(records: Sequence[StreamRecord], begin: float, end: float) -> list[float]:
    """From tick to arrival, of the events in the window. Event k of a stream belongs to the k-th tick of its life."""
    lone = [at for at in records[0].arrivals if at - records[0].started < LONE_SECONDS]
    phase = min(math.fmod(at, TICK) for at in lone)
    found = []
    for record in records:
        offsets = [at - phase - TICK * k for k, at in enumerate(record.arrivals)]
        first = math.floor(min(offsets) / TICK + 1e-3) * TICK
        found += [offset - first for offset, at in zip(offsets, record.arrivals, strict=True) if begin <= at < end]
    return found


def measure(target: Target, pids: Callable[[], list[int]], streams: int, seconds: float) -> Result:
    """Load one server that answers at `target`; `pids` are its processes."""
    total = LONE_SECONDS + OPEN_SECONDS + 2 * SETTLE_SECONDS + seconds
    orders = StreamOrders(target.host, target.port, MODEL, streams, int(total / TICK), LONE_SECONDS, OPEN_SECONDS)
    records: list[StreamRecord] = []

    def load() -> None:
        (result,) = run_workers(CLIENT, [asdict(orders)])
        records.extend(StreamRecord(**record) for record in result)

    client = threading.Thread(target=load)
    client.start()
    time.sleep(LONE_SECONDS + OPEN_SECONDS + SETTLE_SECONDS + 1.0)  # the client takes about a second to start
    begin, before = time.monotonic(), cpu_seconds(pids())
    time.sleep(seconds)
    end, after = time.monotonic(), cpu_seconds(pids())
    client.join()
    late = delays(records, begin, end)
    errors = sum(not record.ok for record in records)
    return Result(errors, len(late), after - before, percentile(late, 0.5), percentile(late, 0.99))


def measure_ours(directory: Path, streams: int, seconds: float, repeat: int) -> Result:
    scratch = directory / f"ours-{repeat}"
    scratch.mkdir()
    options = ["--server-processes", "1", "--max-num-seqs", "2048", "--null-step-seconds", str(TICK)]
    with null_server(scratch, *options) as server:
        return measure(server.target, lambda: server.pids, streams, seconds)


def event_bytes(directory: Path) -> int:
    """The size of one of our events, which the bare handler sends."""
    scratch = directory / "probe"
    scratch.mkdir()
    with null_server(scratch, "--null-step-seconds", "0.01") as server:
        body = completion_body(MODEL, [1, 2, 3], 8)
        with socket.create_connection((server.target.host, server.target.port)) as connection:
            connection.sendall(encode_request(server.target, "/v1/completions", body))
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    sizes = [len(part) - part.find(b"data:") + 2 for part in answer.split(b"\n\n") if b'"choices":[{' in part]
    return sizes[len(sizes) // 2]


def measure_bare(streams: int, seconds: float, size: int) -> Result:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        script = str(Path(__file__).with_name("serve_bare.py"))
        process = subprocess.Popen(
            [sys.executable, script, str(listener.fileno()), str(TICK), str(size)], pass_fds=[listener.fileno()]
        )
        try:
            time.sleep(3.0)
            target = Target("127.0.0.1", listener.getsockname()[1])
            return measure(target, lambda: process_tree(process.pid), streams, seconds)
        finally:
            process.kill()
            process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the window")
    parser.add_argument(
        "--repeats", type=int, default=2, help="turns of ours and the bare handler; the best of each counts"
    )
    args = parser.parse_args()
    ours, bare = [], []
    with tempfile.TemporaryDirectory(prefix="thranite-streams-") as scratch:
        size = event_bytes(Path(scratch))
        for repeat in range(args.repeats):
            bare.append(measure_bare(args.streams, args.seconds, size))
            ours.append(measure_ours(Path(scratch), args.streams, args.seconds, repeat))
            show("bare", bare[-1], args.seconds)
            show("ours", ours[-1], args.seconds)
    return verdict(ours, bare)


def show(name: str, result: Result, seconds: float) -> None:
    print(
        f"{name}: {result.errors} errors, {result.events / seconds:,.0f} events/s, {result.cost:.1f} us of CPU each: "
        f"{1e6 / result.cost:,.0f} a core; delay p50 {1000 * result.p50:.1f} ms, p99 {1000 * result.p99:.1f} ms",
        flush=True,
    )


def verdict(ours: Sequence[Result], bare: Sequence[Result]) -> int:
    """The least of each side counts: what else the machine does only adds."""
    cost = min(result.cost for result in ours) / min(result.cost for result in bare)
    delay = min(result.p99 for result in ours) / min(result.p99 for result in bare)
    errors = sum(result.errors for result in ours)
    print(f"errors {errors} (0); cost {cost:.2f} (at most {BAR}); p99 delay {delay:.2f} (at most {BAR})")
    return int(errors > 0 or cost > BAR or delay > BAR)


if __name__ == "__main__":
    sys.exit(main())
