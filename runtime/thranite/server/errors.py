"""Which HTTP answer each error gets: decided here, for responses and for events of a running stream alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from thranite.errors import EngineDead, InvalidRequest, Rejected, ThraniteError
from thranite.ipc.control import ModelPhase, ModelState
from thranite.request import FinishReason
from thranite.server.wire.error import ErrorBody, ErrorDetail

LOADING_RETRY_SECONDS = 5.0  # what clients of a loading model are told to wait


class ModelUnknown(InvalidRequest):
    """The request names a model that this server does not have."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        listed = ", ".join(f"`{model}`" for model in known)
        super().__init__(f"The model `{name}` does not exist; this server has {listed}", "model", "model_not_found")


class ModelNotReady(ThraniteError):
    """The request names a model that is not served at this moment."""

    def __init__(self, state: ModelState) -> None:
        texts = {
            ModelPhase.QUEUED: "waits until other models are loaded",
            ModelPhase.FAILED: f"has failed: {state.cause}",
        }
        self.message = f"The model `{state.name}` {texts.get(state.phase, 'is loading')}"
        super().__init__(self.message)
        self.failed = state.phase is ModelPhase.FAILED
        self.retry_seconds = state.retry_seconds or LOADING_RETRY_SECONDS


class NotAllowed(InvalidRequest):
    """What the caller's API key does not open."""


class BodyTooLarge(InvalidRequest):
    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes", None, "request_too_large")


class GenerationFailed(ThraniteError):
    """An accepted request that the engine ended without a whole answer."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    status: int
    body: ErrorBody
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> bytes:
        return msgspec.json.encode(self.body)


# The openai client repeats timeouts and server errors unless told otherwise; a deadline of the client's own would only
# pass again.
_NO_RETRY = {"x-should-retry": "false"}


def error_answer(
    status: int,
    message: str,
    kind: str,
    param: str | None = None,
    code: str | int | None = None,
    headers: Mapping[str, str] | None = None,
) -> ErrorAnswer:
    return ErrorAnswer(status, ErrorBody(ErrorDetail(message, kind, param, code)), headers or {})


def describe(error: Exception) -> ErrorAnswer:
    """The answer to any exception; those that are not ours tell the client nothing but that they happened."""
    match error:
        case InvalidRequest():
            statuses = {NotAllowed: 403, ModelUnknown: 404, BodyTooLarge: 413}
            status = statuses.get(type(error), 400)
            return error_answer(status, error.message, "invalid_request_error", error.param, error.code)
        case Rejected():
            return _rejected(error)
        case ModelNotReady():
            code = "model_failed" if error.failed else "loading"
            headers = {"retry-after": str(max(1, math.ceil(error.retry_seconds)))}
            return error_answer(503, error.message, "server_error", "model", code, headers)
        case EngineDead():
            return error_answer(503, f"The engine is not running: {error.cause}", "server_error", code="engine_dead")
        case GenerationFailed(reason=FinishReason.TIMEOUT):
            return error_answer(504, error.message, "timeout_error", "timeout", "timeout", _NO_RETRY)
        case GenerationFailed(reason=FinishReason.ABORT):
            return error_answer(503, error.message, "server_error", code="aborted")
        case GenerationFailed():
            # What the request asks for contradicts itself, as only its tokens could tell: the engine's own failures
            # end the engine.
            return error_answer(400, error.message, "invalid_request_error", code="generation_failed")
        case _:
            return error_answer(500, "The server failed on this request; its log says why", "server_error")


def _rejected(error: Rejected) -> ErrorAnswer:
    wait = max(1, math.ceil(error.retry_after_seconds or 1.0))
    headers = {"retry-after": str(wait)}
    if error.reason in ("draining", "asleep"):
        message = error.message
        if error.reason == "draining":
            headers["connection"] = "close"
        else:
            message += ": POST /wake_up on the admin port wakes it"
        return error_answer(503, message, "server_error", code=error.reason, headers=headers)
    return error_answer(429, error.message, "rate_limit_error", code=error.reason, headers=headers)
