"""The runtime's one error tree.

    ThraniteError
    ├── InvalidRequest        a request that can never be served as sent: HTTP 400 with the field's name
    ├── Rejected              a request refused for the engine's state: HTTP 429 or 503, worth a retry
    ├── EngineDead            the engine ended while requests were open, or was left inside a step
    └── StartupError          the process cannot serve; carries a stage and an exit code
        ├── ConfigError       options that contradict each other or the machine
        ├── ModelNotFound     no such directory, repository or revision
        ├── UnsupportedModel  an architecture, quantization or feature this runtime does not have
        ├── CheckpointError   missing, surplus, misshapen or unreadable tensors
        └── DoesNotFit        weights, activations and KV cache exceed the device's memory

`assert` is for programmer errors only. Every class a user can meet says what was wrong, where, and what to do.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `thranite`; `docs/operations.md` lists them for the operator and for humans."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 3
    MODEL_NOT_FOUND = 4
    UNSUPPORTED_MODEL = 5
    CHECKPOINT = 6
    DOES_NOT_FIT = 7
    ENGINE_DIED = 8
    ENGINE_STALLED = 9


class ThraniteError(Exception):
    """Root of every error the runtime raises on purpose."""


class InvalidRequest(ThraniteError):
    """A request that can never be served as sent. `param` names the offending field as the client spelt it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def of(self, which: str) -> InvalidRequest:
        """The same, said of one among several."""
        return InvalidRequest(f"{which}: {self.message}", self.param, self.code)


class Rejected(ThraniteError):
    """A request refused for the engine's present state, before any of its work was done.

    `reason` is a label value of `thranite_requests_rejected_total`: queue_full, draining, asleep.
    """

    def __init__(self, message: str, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class EngineDead(ThraniteError):
    """The engine process ended; `cause` is what the termination log says."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class StartupError(ThraniteError):
    """The process cannot serve. `hint` says what to change."""

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  hint: {hint}")
        self.message = message
        self.hint = hint


class ConfigError(StartupError):
    exit_code = ExitCode.CONFIG


class ModelNotFound(StartupError):
    exit_code = ExitCode.MODEL_NOT_FOUND


class UnsupportedModel(StartupError):
    exit_code = ExitCode.UNSUPPORTED_MODEL


class CheckpointError(StartupError):
    exit_code = ExitCode.CHECKPOINT


class DoesNotFit(StartupError):
    exit_code = ExitCode.DOES_NOT_FIT
