"""Everything at once, for minutes: aborts, several samples, grammars, deadlines that pass, preemption.

    python dev/bench/serve_soak.py [--seconds 300] [--requests 20000]

Afterwards nothing may be left: every page and slot free (the engine proves their ownership whenever it is idle, and
dies if it cannot), memory after the first minute within 2 %, as many open files as before.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_null import CONFIG, null_server
from serve_process import Server, open_files, resident_bytes

from thranite.bench.http_stream import StreamRecord, completion_body, stream

CLIENTS = 48
IDLE_SECONDS = 1.5  # the engine proves its integrity after half a second
SETTLED_AFTER = 60.0
GROWTH = 1.02
POOL_TOKENS = 3840  # KV cache: fewer than the clients want at once
OPTIONS = ["--server-processes", "2", "--max-model-len", "512", "--max-num-seqs", "48"]
PACE = ["--null-step-seconds", "0.01"]


def soak_options(config: dict[str, Any], bytes_a_value: int) -> list[str]:
    """For a model of this config.json, whose KV cache has so many bytes a value."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * bytes_a_value
    return [*OPTIONS, "--kv-cache-memory-bytes", str(POOL_TOKENS * token)]


NULL_OPTIONS = [*soak_options(CONFIG, 4), *PACE]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a soak found; `problems` is empty where nothing was wrong."""

    outcomes: Counter[str]
    preemptions: int
    memory: tuple[int, int]
    problems: tuple[str, ...]


class Mix:
    """Draws requests: 20 % hang up, 10 % want several samples, 10 % a grammar, 5 % a deadline that passes."""

    def __init__(self, server: Server, seed: int) -> None:
        self._target, self._model, self._draw = server.target, server.model, random.Random(seed)

    async def one(self) -> str:
        """Send one request; its outcome, which is `wrong: …` for one that it should not have had."""
        draw, kind = self._draw, self._draw.random()
        prompt = [draw.randint(1, 60) for _ in range(draw.randint(10, 200))]
        tokens = draw.randint(8, 40)
        if kind < 0.20:
            body = completion_body(self._model, prompt, 60)
            return judge("aborted", await stream(self._target, body, abort_after=draw.randint(1, 12)))
        if kind < 0.30:
            body = completion_body(self._model, prompt, tokens, n=draw.randint(2, 4))
            return judge("samples", await stream(self._target, body))
        if kind < 0.40:
            body = completion_body(self._model, prompt, tokens, ignore_eos=False, guided_regex="[a-z]{3,20}")
            return judge("grammar", await stream(self._target, body))
        if kind < 0.45:
            record = await stream(
                self._target, completion_body(self._model, prompt, 200, timeout=draw.uniform(0.01, 0.5))
            )
            late = "timeout" in (record.error or "")
            return "expired" if late else judge("expired", record)
        return judge("plain", await stream(self._target, completion_body(self._model, prompt, tokens)))


def judge(kind: str, record: StreamRecord) -> str:
    return kind if record.ok else f"wrong: {kind}: {record.status} {record.error}"


async def load(server: Server, seconds: float, requests: int, seed: int = 1) -> Counter[str]:
    """Clients that are always busy, until `seconds` have passed and `requests` were sent."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    mix = Mix(server, seed)

    async def client() -> None:
        while time.monotonic() < end or outcomes.total() < requests:
            outcomes[await mix.one()] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return outcomes


def soak(server: Server, seconds: float, requests: int, growth: float = GROWTH) -> Leftovers:
    """Load `server`, let it come to rest, and look at what is left. `growth`: bound of memory ÷ settled memory."""
    settled = min(SETTLED_AFTER, seconds / 2)
    asyncio.run(load(server, settled, 0, seed=0))
    before, files = at_rest(server)
    outcomes = asyncio.run(load(server, seconds - settled, requests))
    after, files_after = at_rest(server)
    problems = [f"{count} x {outcome}" for outcome, count in outcomes.items() if outcome.startswith("wrong")]
    for name in ("thranite_requests_running", "thranite_requests_waiting", "thranite_kv_cache_usage_ratio"):
        if value := server.metric(name):
            problems.append(f"{name} is {value} at rest")
    preemptions = int(server.metric("thranite_preemptions_total"))
    if preemptions == 0:
        problems.append("nothing was preempted")
    if after > growth * before:
        problems.append(f"memory grew from {before} to {after} bytes")
    if files != files_after:
        problems.append(f"{files} files were open before, {files_after} after")
    if code := server.stop():
        problems.append(f"the server ended with {code}: {server.log()[-2000:]}")
    return Leftovers(outcomes, preemptions, (before, after), tuple(problems))


def at_rest(server: Server) -> tuple[int, int]:
    """(resident bytes, open files) once the engine has had time to prove its integrity."""
    time.sleep(IDLE_SECONDS)
    return resident_bytes(server.pids), open_files(server.pids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many after the first minute")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="thranite-soak-") as scratch,
        null_server(Path(scratch), *NULL_OPTIONS) as server,
    ):
        return report(soak(server, args.seconds, args.requests))


def report(left: Leftovers) -> int:
    print(f"{left.outcomes.total()} requests: {dict(left.outcomes.most_common())}")
    print(f"{left.preemptions} preemptions; memory {left.memory[0] / 2**20:.1f} -> {left.memory[1] / 2**20:.1f} MiB")
    print("\n".join(left.problems) or "nothing is left")
    return int(bool(left.problems))


if __name__ == "__main__":
    sys.exit(main())
