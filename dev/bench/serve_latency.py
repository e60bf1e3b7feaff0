"""What HTTP, IPC and the step loop add to a first token, on the null device at the pace of an 8B model on one GPU.

    python dev/bench/serve_latency.py [--seconds 20] [-- options of thranite serve]

A step takes 4.6 ms, 26 us for each prompt token and 40 us for each row. Alone, a request's first token could come
after its own step; what it takes beyond that is the way there and back. Under load it also waits for the step that
runs when it comes. The bar: alone, at most 3 ms at the median.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from online_inside import Inside, look
from serve_null import MODEL, VOCAB, null_server
from serve_process import Server

from thranite.bench.http_stream import completion_body, stream
from thranite.bench.online_figures import percentile, row
from thranite.bench.serve import Load, measure

STEP, PROMPT_TOKEN, ROW = 0.0046, 26e-6, 40e-6
PROMPT = 500
RATES = (4.0, 16.0, 32.0)
BAR_MS = 3.0
PACE = ["--null-step-seconds", str(STEP), "--null-prompt-token-seconds", str(PROMPT_TOKEN),
        "--null-row-seconds", str(ROW)]  # fmt: skip


async def alone(server: Server, count: int, seed: int) -> list[float]:
    """Milliseconds beyond its own step, of requests one after another."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        prompt = [draw.randint(10, VOCAB - 1) for _ in range(PROMPT)]
        record = await stream(server.target, completion_body(MODEL, prompt, 2))
        if not record.ok:
            raise RuntimeError(f"a request failed: {record.error}")
        found.append(1000 * (record.arrivals[0] - record.started - STEP - PROMPT * PROMPT_TOKEN - ROW))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each rate")
    parser.add_argument("--requests", type=int, default=200, help="one after another")
    parser.add_argument("serve", nargs="*", metavar="-- OPTION", help="further options of thranite serve")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="thranite-latency-") as scratch,
        null_server(Path(scratch), *PACE, "--max-num-seqs", "512", *args.serve) as server,
    ):
        asyncio.run(alone(server, 10, seed=1))
        added = asyncio.run(alone(server, args.requests, seed=2))
        p10, p50, p99 = (percentile(added, share) for share in (0.1, 0.5, 0.99))
        print(f"alone: {p10:.2f} ms beyond its own step at p10, {p50:.2f} at p50 (at most {BAR_MS}), {p99:.2f} at p99")
        load = Load(server.target.host, server.target.port, MODEL, 1, VOCAB)
        for place, (rate, count) in enumerate([*((rate, int(rate * args.seconds)) for rate in RATES), (1e9, 512)]):
            before = look(server)
            result = measure(load, place, rate, count)
            print(" | ".join(row(result)), flush=True)
            print("    " + Inside.between(before, look(server)).line(), flush=True)
        return int(p50 > BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
