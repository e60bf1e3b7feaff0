"""OpenTelemetry spans, one for each engine request, where the SDK is installed and an endpoint is given.

Names are vLLM's (`llm_request`, `gen_ai.latency.…`) and those of OpenTelemetry's semantic conventions for generative
AI. A span says how much was asked and answered, never what; its parent is the caller's (`traceparent`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from opentelemetry import context, propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from starlette.types import ASGIApp, Receive, Scope, Send

from thranite.engine.client import DeltaStream, EngineClient, EngineInfo
from thranite.engine.stats import EngineStats
from thranite.request import EngineRequest, FinishReason, SequenceDelta

SPAN = "llm_request"
FAILURES = (FinishReason.TIMEOUT, FinishReason.ERROR, FinishReason.ABORT)
FLUSH_MILLISECONDS = 2000


class Tracing:
    """The spans of one process. `processor` takes them; None: a batch exporter to `endpoint`."""

    def __init__(self, model: str, endpoint: str | None, processor: SpanProcessor | None = None) -> None:
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "thranite"}))
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("thranite")

    def client(self, client: EngineClient, model: str | None = None) -> TracedClient:
        """`model`: its name in spans, if it is not the first."""
        return TracedClient(client, self._tracer, model or self._model)

    def app(self, app: ASGIApp) -> ASGIApp:
        """`app`, with its caller's trace as the context."""

        async def with_context(scope: Scope, receive: Receive, send: Send) -> None:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
            token = context.attach(propagate.extract(headers))
            try:
                await app(scope, receive, send)
            finally:
                context.detach(token)

        return with_context

    def close(self) -> None:
        """Send what is left. Waits for the collector, for a while: not for an event loop's thread."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


class TracedClient:
    """An `EngineClient` whose requests leave spans."""

    def __init__(self, client: EngineClient, tracer: Tracer, model: str) -> None:
        self._client, self._tracer, self._model = client, tracer, model
        self._open: dict[str, _OpenSpan] = {}

    @property
    def info(self) -> EngineInfo:
        return self._client.info

    async def submit(self, request: EngineRequest) -> DeltaStream:
        opened = _OpenSpan(self._begin(request), request)
        try:
            stream = await self._client.submit(request)
        except BaseException as error:
            opened.end(type(error).__name__)
            raise
        self._open[request.request_id] = opened
        return _TracedStream(stream, self, opened)

    def abort(self, request_id: str) -> None:
        self.ended(request_id, "aborted")
        self._client.abort(request_id)

    def stop(self, request_id: str, index: int) -> None:
        opened = self._open.get(request_id)
        if opened is not None:
            self.noted(opened, FinishReason.STOP)
        self._client.stop(request_id, index)

    async def stats(self) -> EngineStats:
        return await self._client.stats()

    def noted(self, opened: _OpenSpan, reason: FinishReason) -> None:
        """One of its samples ended; the span ends with the last."""
        opened.reasons.append(reason.value)
        if len(opened.reasons) == opened.request.params.n:
            self.ended(opened.request.request_id, None)

    def ended(self, request_id: str, failure: str | None) -> None:
        opened = self._open.pop(request_id, None)
        if opened is not None:
            opened.end(failure)

    def _begin(self, request: EngineRequest) -> Span:
        params = request.params
        attributes: dict[str, str | int | float] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.id": request.request_id,
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.request.n": params.n,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.usage.prompt_tokens": len(request.prompt_token_ids),
            "gen_ai.usage.input_tokens": len(request.prompt_token_ids),
        }
        return self._tracer.start_span(SPAN, kind=SpanKind.SERVER, attributes=attributes)


@dataclass(slots=True)
class _OpenSpan:
    span: Span
    request: EngineRequest
    began: float = field(default_factory=time.monotonic)
    generated: int = 0
    reasons: list[str] = field(default_factory=list)

    def take(self, delta: SequenceDelta) -> None:
        if delta.token_ids and not self.generated:
            self.span.set_attribute("gen_ai.latency.time_to_first_token", time.monotonic() - self.began)
        self.generated += len(delta.token_ids)

    def end(self, failure: str | None) -> None:
        failed = failure or next((reason for reason in self.reasons if reason in FAILURES), None)
        if failed is not None:
            self.span.set_status(StatusCode.ERROR, failed)
        self.span.set_attributes(
            {
                "gen_ai.usage.completion_tokens": self.generated,
                "gen_ai.usage.output_tokens": self.generated,
                "gen_ai.usage.num_sequences": self.request.params.n,
                "gen_ai.response.finish_reasons": tuple(self.reasons),
                "gen_ai.latency.e2e": time.monotonic() - self.began,
            }
        )
        self.span.end()


class _TracedStream:
    """A `DeltaStream` that tells its span what passes."""

    def __init__(self, stream: DeltaStream, client: TracedClient, opened: _OpenSpan) -> None:
        self._stream, self._client, self._opened = stream, client, opened

    async def take(self) -> list[SequenceDelta]:
        try:
            deltas = await self._stream.take()
        except Exception as error:
            self._client.ended(self._opened.request.request_id, type(error).__name__)
            raise
        for delta in deltas:
            self._opened.take(delta)
            if delta.finish_reason is not None:
                self._client.noted(self._opened, delta.finish_reason)
        return deltas
