"""A drain while a hundred streams are open and new connections come, with one server process and with several."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.support.running_server import RunningServer, running_server
from thranite.bench.http_stream import StreamRecord, Target, completion_body, stream
from thranite.errors import ExitCode

STREAMS = 100
TOKENS = 350  # seven seconds, of which a busy machine may need most for the ten that are refused
DRAIN_DELAY = 2.0
TIMEOUT = 30.0


def short(server: RunningServer) -> httpx.Response:
    """A request on a new connection."""
    with httpx.Client(base_url=server.api_url, timeout=TIMEOUT) as client:
        return client.post("/v1/completions", json={"model": "tiny", "prompt": [5], "max_tokens": 2})


async def scene(server: RunningServer) -> tuple[list[StreamRecord], list[httpx.Response]]:
    """Open the streams, terminate the server, and keep asking until it has refused for a while."""
    host, port = server.api_url.removeprefix("http://").split(":")
    body = completion_body("tiny", [5, 6, 7], TOKENS)
    streams = [asyncio.create_task(stream(Target(host, int(port)), body)) for _ in range(STREAMS)]
    while await asyncio.to_thread(server.metric, "thranite_requests_running") < STREAMS:
        await asyncio.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    answers: list[httpx.Response] = []
    while Counter(answer.status_code for answer in answers)[503] < 10:
        answers.append(await asyncio.to_thread(short, server))
        await asyncio.sleep(0.05)
    return await asyncio.gather(*streams), answers


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_no_stream_is_cut_and_new_requests_are_served_then_refused(tmp_path: Path, processes: int) -> None:
    with running_server(tmp_path, server_processes=processes, drain_delay=DRAIN_DELAY, drain_timeout=20.0) as server:
        server.wait_ready()
        records, answers = asyncio.run(scene(server))
        assert [record.error for record in records if not record.ok] == []
        assert {record.completion_tokens for record in records} == {TOKENS}
        statuses = [answer.status_code for answer in answers]
        assert statuses[:3] == [200] * 3  # within the drain delay
        assert statuses[-10:] == [503] * 10
        assert set(statuses) == {200, 503}
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.headers["connection"] for answer in refused} == {"close"}
        assert {answer.json()["error"]["code"] for answer in refused} == {"draining"}
        assert server.exit_code() == ExitCode.OK
