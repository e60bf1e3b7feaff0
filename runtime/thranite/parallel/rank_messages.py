"""What rank 0 and another rank say to each other over their socket pair, aside from steps: lines of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from thranite import errors
from thranite.config import EngineConfig
from thranite.errors import EngineDead, ExitCode, StartupError, ThraniteError


@dataclass(frozen=True, slots=True)
class RankStart:
    """Rank 0's one message. `store`: the file through which ranks meet; `threads`: torch's (None: its own choice)."""

    config: EngineConfig
    directory: str
    rank: int
    size: int
    store: str
    threads: int | None

    def encode(self) -> bytes:
        return _line(asdict(self))

    @classmethod
    def decode(cls, line: bytes) -> RankStart:
        fields = json.loads(line)
        return cls(**{**fields, "config": EngineConfig(**fields["config"])})


@dataclass(frozen=True, slots=True)
class RankDevice:
    """The device a rank runs on. It is about to meet the others."""

    name: str


@dataclass(frozen=True, slots=True)
class RankReady:
    """The rank waits for steps."""


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The rank ends after an exception. `stage`: None while serving. `error`: the exception's class."""

    stage: str | None
    error: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, stage: str | None, error: Exception) -> RankFailed:
        if isinstance(error, StartupError):
            return cls(stage, type(error).__name__, error.message, error.hint)
        return cls(stage, type(error).__name__, str(error))

    def raised(self, rank: str) -> ThraniteError:
        """The exception for whoever runs the engine. `rank`: which one, as a sentence begins."""
        if self.stage is None:
            return EngineDead(f"{rank} failed: {self.error}: {self.message}")
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, StartupError):
            return kind(f"{rank}: {self.message}", self.hint)
        return StartupError(f"{rank} failed in stage {self.stage!r}: {self.error}: {self.message}")


FromRank = RankDevice | RankReady | RankFailed
_KINDS: dict[str, type[FromRank]] = {kind.__name__: kind for kind in (RankDevice, RankReady, RankFailed)}


def encode(message: FromRank) -> bytes:
    return _line({"kind": type(message).__name__, **asdict(message)})


def decode(line: bytes) -> FromRank:
    fields = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)


def exit_code(error: ThraniteError) -> ExitCode:
    return error.exit_code if isinstance(error, StartupError) else ExitCode.ENGINE_DIED


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
