"""What the supervisor and its children say to each other, over the socket pair each child inherits."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from thranite.config import EngineConfig
from thranite.engine.client import EngineInfo
from thranite.ipc.http_options import HttpOptions
from thranite.sampling_params import Pooling


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Encoded as an array: an integer tag, then the fields."""


class StartEngine(_Message, tag=1, frozen=True, array_like=True):
    """The engine's first message. It listens on `socket_path` once it is ready."""

    config: EngineConfig
    socket_path: str
    log_level: str


class StartServer(_Message, tag=2, frozen=True, array_like=True):
    """A server process's first message."""

    config: EngineConfig
    served_model_names: tuple[str, ...]
    api_keys: tuple[tuple[str, str], ...]  # (key, class)
    chat_template: str | None  # its source
    generation_config: Literal["auto", "none"]
    max_body_bytes: int
    tokenizer_threads: int
    http: HttpOptions
    log_level: str
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    pooling: Pooling = "last"
    process_index: int = 0  # among the server processes


class ModelPhase(StrEnum):
    """What becomes of a model. Models load one after another: QUEUED ones wait for their turn."""

    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    FALLING_ASLEEP = "falling asleep"  # new requests are refused, open ones end
    ASLEEP = "asleep"
    WAKING = "waking"
    FAILED = "failed"  # it is loaded again after a while
    UNLOADING = "unloading"


class ModelState(msgspec.Struct, frozen=True, array_like=True):
    """How a model fares. `name`: its first one. `root`: what was asked to be loaded."""

    name: str
    phase: ModelPhase
    root: str = ""
    stage: str | None = None  # of loading
    progress: float | None = None  # of the stage, 0 to 1
    cause: str | None = None  # of a failure
    retry_seconds: float | None = None  # until a failed model is loaded again, when it failed


class AddModel(_Message, tag=7, frozen=True, array_like=True):
    """To servers: there is this model beside the first; read its texts. It may be repeated."""

    name: str
    config: EngineConfig
    chat_template: str | None  # its source
    generation_config: Literal["auto", "none"]
    tool_call_parser: str
    reasoning_parser: str
    pooling: Pooling


class RemoveModel(_Message, tag=8, frozen=True, array_like=True):
    """To servers: take no new requests for an added model; ModelGone follows once its last one has ended, unless an
    AddModel of that name has come by then."""

    name: str


class ModelStates(_Message, tag=9, frozen=True, array_like=True):
    """To servers: how all models fare, the first included."""

    states: tuple[ModelState, ...]


class EngineUp(_Message, tag=3, frozen=True, array_like=True):
    """To servers: the engine of `model` (None: the first) listens on `socket_path`, since `loaded_at` (Unix time)."""

    socket_path: str
    startup_seconds: dict[str, float]
    model: str | None = None
    loaded_at: int = 0


class Draining(_Message, tag=4, frozen=True, array_like=True):
    """To the engine and servers. `refusing`: new requests are refused by now; before that they are still admitted."""

    draining: bool
    refusing: bool


class CutOff(_Message, tag=5, frozen=True, array_like=True):
    """To servers: end every open request, or those of `model`, with a final event that says `message`."""

    message: str
    model: str | None = None


class Sleep(_Message, tag=10, frozen=True, array_like=True):
    """To an engine: refuse new requests and sleep once none is open; or wake. Answered by Slept."""

    asleep: bool


class Shutdown(_Message, tag=6, frozen=True, array_like=True):
    """To any child: exit with 0. Open requests have been ended."""


class StageProgress(_Message, tag=16, frozen=True, array_like=True):
    """`fraction` of `stage` is done after `seconds`; None: not countable. A stage ends when another begins."""

    stage: str
    fraction: float | None
    seconds: float
    done: bool = False


class StageNote(_Message, tag=23, frozen=True, array_like=True):
    """Text for the log, such as the memory plan."""

    text: str


class EngineReady(_Message, tag=17, frozen=True, array_like=True):
    info: EngineInfo


class ServerReady(_Message, tag=18, frozen=True, array_like=True):
    """The server process answers requests."""


class StartupFailed(_Message, tag=19, frozen=True, array_like=True):
    """A child cannot start. `error` is the class's name."""

    stage: str
    error: str
    message: str
    hint: str | None
    exit_code: int


class Heartbeat(_Message, tag=20, frozen=True, array_like=True):
    """The engine's I/O thread says how its step loop is.

    `busy_seconds`: since work is there and no step finished (0: idle); `allowed_seconds`: how long that may last;
    `in_step`: whether it is a step of requests, not sleep, waking or a preparation;
    `behind`: the tensor-parallel rank that gives no sign of life, if one does not.
    """

    steps: int
    busy_seconds: float
    allowed_seconds: float
    behind: str | None = None
    in_step: bool = True


class ServerBeat(_Message, tag=21, frozen=True, array_like=True):
    """A server process lives and has so many requests open; `refusing` is what it was told last."""

    open_requests: int
    refusing: bool


class Slept(_Message, tag=27, frozen=True, array_like=True):
    """An engine has fallen asleep, or woken. `error`: why it could not wake, and sleeps on."""

    asleep: bool
    seconds: float
    freed_bytes: int = 0
    error: str | None = None


class ModelServed(_Message, tag=24, frozen=True, array_like=True):
    """The server process answers for an added model."""

    name: str


class ModelRefused(_Message, tag=25, frozen=True, array_like=True):
    """The server process cannot answer for an added model, such as for lack of its tokenizer."""

    name: str
    cause: str


class ModelGone(_Message, tag=26, frozen=True, array_like=True):
    """The server process has no open request for a model that was to be removed, and never will."""

    name: str


class ChildFatal(_Message, tag=22, frozen=True, array_like=True):
    """The child ends after an exception."""

    cause: str


ToChild = (
    StartEngine | StartServer | AddModel | RemoveModel | ModelStates | EngineUp | Draining | CutOff | Sleep | Shutdown
)
FromChild = (
    StageProgress
    | StageNote
    | EngineReady
    | ServerReady
    | StartupFailed
    | Heartbeat
    | ServerBeat
    | ChildFatal
    | Slept
    | ModelServed
    | ModelRefused
    | ModelGone
)

DecodeError = msgspec.DecodeError

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode(message: ToChild | FromChild) -> bytes:
    return _encoder.encode(message)


def decode_to_child(payload: bytes) -> ToChild:
    return _to_child.decode(payload)


def decode_from_child(payload: bytes) -> FromChild:
    return _from_child.decode(payload)
