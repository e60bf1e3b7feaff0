"""What a server process and the engine say to each other, one message a frame.

A request is named by its `handle`, an integer that the server process chooses, unique on its connection.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from thranite.engine.client import EngineInfo
from thranite.engine.stats import EngineStats
from thranite.ipc.step_frame import Step
from thranite.request import EngineRequest

PROTOCOL = 1


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Encoded as an array: an integer tag, then the fields."""


class Add(_Message, tag=1, frozen=True, array_like=True):
    """`sent_at`: of `time.monotonic`, which all processes of a machine share; the engine may be at a step meanwhile."""

    handle: int
    request: EngineRequest
    sent_at: float | None = None


class Abort(_Message, tag=2, frozen=True, array_like=True):
    handle: int


class Stop(_Message, tag=3, frozen=True, array_like=True):
    handle: int
    index: int


class GetStats(_Message, tag=4, frozen=True, array_like=True):
    """Answered by a Stats with the same `serial` at the next step boundary."""

    serial: int


class Hello(_Message, tag=16, frozen=True, array_like=True):
    """The engine's first message on a connection, sent once it is ready."""

    protocol: int
    info: EngineInfo


class Accepted(_Message, tag=17, frozen=True, array_like=True):
    handle: int


class Refused(_Message, tag=18, frozen=True, array_like=True):
    """`kind` says which error of thranite.errors it was: InvalidRequest (param, code) or Rejected (reason, retry)."""

    handle: int
    kind: Literal["invalid", "rejected"]
    message: str
    param: str | None = None
    code: str | None = None
    reason: str = ""
    retry_after_seconds: float | None = None


class Stats(_Message, tag=20, frozen=True, array_like=True):
    serial: int
    stats: EngineStats


class Fatal(_Message, tag=21, frozen=True, array_like=True):
    """The engine ends; every open request is lost."""

    cause: str


ToEngine = Add | Abort | Stop | GetStats
FromEngine = Hello | Accepted | Refused | Step | Stats | Fatal

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(payload: bytes) -> ToEngine:
    """Raises msgspec.DecodeError (a ValidationError where the shape is wrong)."""
    return _to_engine.decode(payload)


def decode_from_engine(payload: bytes) -> FromEngine:
    """Raises msgspec.DecodeError (a ValidationError where the shape is wrong)."""
    return _from_engine.decode(payload)
