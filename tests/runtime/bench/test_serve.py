"""The online benchmark against a real server on the null device, and its figures from made-up clients."""

from __future__ import annotations

import asyncio
import json
import math
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_stub import http_stub
from tests.support.null_model import model_directory
from tests.support.running_server import running_server
from thranite.bench.http_stream import StreamRecord, Target, completion_body, stream
from thranite.bench.online_figures import figures, table
from thranite.bench.online_load import PROMPT_TOKENS, Orders, arrivals
from thranite.bench.serve import parse_runs
from thranite.cli.main import main
from thranite.errors import ConfigError


def test_against_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thranite.bench.serve.START_SECONDS", 0.3)
    engine: dict[str, Any] = {
        "model": model_directory(tmp_path / "model"),
        "null_step_seconds": 0.001,
        "max_num_seqs": 64,
    }
    engine["skip_tokenizer_init"] = False
    with running_server(tmp_path, "null", engine, served_model_name=["tiny"]) as server:
        server.wait_ready()
        command = ["bench", "serve", "--url", server.api_url, "--vocab", "250", "--processes", "2", "--json"]
        assert main([*command, "--model", "tiny", "--runs", "inf:9,200:20"]) == 0
        measured: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert [(run["rate"], run["requests"], run["failed"]) for run in measured] == [("inf", 9, 0), ("200.0", 20, 0)]
        for run in measured:
            assert 0 < run["ttft_p50"] <= run["ttft_p99"] < run["e2e_p99"]
            assert 0.9 <= run["tpot_p50"] <= run["tpot_p99"]
            assert run["output_tokens_a_second"] > 100
        assert server.metric("thranite_requests_received_total") == 16 + 29
        assert main([*command, "--model", "other", "--runs", "inf:2"]) == 1
        assert "The model `other` does not exist" in capsys.readouterr().err


def test_figures_are_of_the_requests_that_came_through() -> None:
    good = [StreamRecord(10.0, [11.0, 11.5, 12.0], 200, 5, ended=True), StreamRecord(10.0, [13.0], 200, 1, ended=True)]
    lost = StreamRecord(10.0, [10.1], 200, error="the connection was lost")
    result = figures(math.inf, [*good, lost], begin=9.0)
    assert (result.requests, result.failed, result.first_error) == (3, 1, "the connection was lost")
    assert (result.seconds, result.output_tokens_a_second) == (4.0, 1.5)
    assert (result.ttft_p50, result.ttft_p99) == (3000.0, 3000.0)
    assert (result.tpot_p50, result.itl_p50, result.e2e_p99) == (250.0, 500.0, 3000.0)
    assert "| all at once | 3 | 1 | 3,000.0 / 3,000.0 | 250.00 / 250.00 |" in table([result])


def test_figures_of_nothing_are_json() -> None:
    none = figures(math.inf, [StreamRecord(10.0, error="no connection")], begin=9.0).record()
    assert json.loads(json.dumps(none, allow_nan=False))["tpot_p99"] is None


@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_stream_is_read_as_other_servers_write_it(line: str, separators: tuple[str, str]) -> None:
    usage = {"completion_tokens": 2}
    events = [
        {"choices": [{"text": "a"}], "usage": None},
        {"choices": [{"text": "b"}]},
        {"choices": [], "usage": usage},
    ]
    texts = [*(json.dumps(event, separators=separators) for event in events), "[DONE]"]
    body = "".join(f"data: {text}{line}{line}" for text in texts).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            for byte in body:
                self.wfile.write(bytes([byte]))

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is told."""

    with http_stub(Handler) as port:
        record = asyncio.run(stream(Target("127.0.0.1", port), completion_body("m", [1], 2)))
    assert (record.error, record.completion_tokens, len(record.arrivals)) == (None, 2, 2)


def test_a_seed_is_one_load() -> None:
    def make(seed: int, rate: float) -> list[tuple[float, bytes]]:
        return list(arrivals(Orders("h", 1, "m", seed, rate, 50, 1000, 0.0)))

    assert make(3, 10.0) == make(3, 10.0) != make(4, 10.0)
    times = [at for at, _ in make(3, 10.0)]
    assert times == sorted(times)
    assert 2.0 < times[-1] < 10.0
    assert {at for at, _ in make(3, math.inf)} == {0.0}
    lengths = [len(json.loads(body)["prompt"]) for _, body in make(3, 10.0)]
    assert PROMPT_TOKENS[0] <= min(lengths) < max(lengths) <= PROMPT_TOKENS[1]


@pytest.mark.parametrize("text", ["16", "x:3", "16:3", "0:10", "-1:10", "16:4:4"])
def test_what_is_no_list_of_runs(text: str) -> None:
    with pytest.raises(ConfigError, match="--runs"):
        parse_runs(text, 4)
