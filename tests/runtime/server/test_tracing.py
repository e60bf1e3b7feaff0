"""Spans: one a request, with the caller's trace as its parent, and nothing of what was said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.runtime.server.test_failures import until
from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, serve
from thranite.errors import Rejected
from thranite.request import FinishReason
from thranite.server.app import build_app
from thranite.server.settings import ServerSettings
from thranite.server.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "secret", "max_tokens": 50, "temperature": 0.5, "top_p": 0.9}


@contextmanager
def traced(engine: FakeEngine) -> Iterator[tuple[httpx.Client, InMemorySpanExporter]]:
    spans = InMemorySpanExporter()
    tracing = Tracing(MODEL, None, SimpleSpanProcessor(spans))
    app = build_app(tracing.client(engine), TOKENIZER, ServerSettings(served_model_names=(MODEL,)))
    with serve(tracing.app(app)) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield http, spans
    tracing.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_s_span(stream: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with traced(FakeEngine(says("hidden words"))) as (http, spans):
        answer = http.post("/v1/completions", json={**COMPLETION, "stream": stream, "n": 2}, headers=headers)
        assert answer.status_code == 200
        [span] = spans.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("llm_request", SpanKind.SERVER, StatusCode.UNSET)
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    found = attributes(span)
    tokens = len(TOKENIZER.encode("hidden words", add_special_tokens=False)) + 1
    assert {name: found[f"gen_ai.request.{name}"] for name in ("n", "max_tokens", "temperature", "top_p", "model")} == {
        "n": 2, "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "model": MODEL,
    }  # fmt: skip
    assert found["gen_ai.usage.prompt_tokens"] == found["gen_ai.usage.input_tokens"] == len(TOKENIZER.encode("secret"))
    assert found["gen_ai.usage.completion_tokens"] == found["gen_ai.usage.output_tokens"] == 2 * tokens
    assert found["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert 0 < found["gen_ai.latency.time_to_first_token"] <= found["gen_ai.latency.e2e"]
    assert "secret" not in str(found)
    assert "hidden" not in str(found)


def test_spans_of_requests_that_fail() -> None:
    engine = FakeEngine(says("abc", finish=FinishReason.TIMEOUT))
    with traced(engine) as (http, spans):
        http.post("/v1/completions", json=COMPLETION)
        engine.refuse = Rejected("full", "queue_full")
        http.post("/v1/completions", json=COMPLETION)
        engine.refuse, engine.hold_after = None, 1
        with http.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}):
            until(lambda: len(engine.submitted) == 2)
        until(lambda: len(spans.get_finished_spans()) == 3)
        found = [(span.status.status_code, span.status.description) for span in spans.get_finished_spans()]
    assert found == [(StatusCode.ERROR, name) for name in ("timeout", "Rejected", "aborted")]
