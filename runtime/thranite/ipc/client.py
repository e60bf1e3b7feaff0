"""A server process's end of the connection to the engine: `EngineClient` over an AF_UNIX socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from pathlib import Path
from typing import Any

from thranite.engine.client import EngineInfo
from thranite.engine.stats import EngineStats
from thranite.errors import EngineDead, InvalidRequest, Rejected
from thranite.ipc import messages
from thranite.ipc.framing import MAX_FRAME, FrameError, FrameReader, frame
from thranite.ipc.step_frame import Step, unpack_step
from thranite.ipc.stream import RequestStream
from thranite.request import EngineRequest

logger = logging.getLogger(__name__)

RECEIVE_CHUNK = 256 * 1024


class SocketEngineClient:
    """Made by `connect`. Belongs to one event loop; not thread-safe."""

    def __init__(self, info: EngineInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._info = info
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._streams: dict[int, RequestStream] = {}
        self._handles: dict[str, int] = {}
        self._admissions: dict[int, asyncio.Future[messages.Refused | None]] = {}
        self._snapshots: dict[int, asyncio.Future[EngineStats]] = {}
        self._dead: EngineDead | None = None
        self.closed: asyncio.Future[EngineDead] = (
            asyncio.get_running_loop().create_future()
        )  # resolves with the EngineDead that ended it
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: str | Path) -> SocketEngineClient:
        """Connect to the engine that listens on `path`. Returns once its Hello has come. Raises EngineDead."""
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise EngineDead(f"the engine does not listen: {error}") from error
        frames = FrameReader()
        payloads: list[bytes] = []
        while not payloads:
            chunk = await reader.read(RECEIVE_CHUNK)
            if not chunk:
                writer.close()
                raise EngineDead("the engine closed the connection before it was ready")
            payloads += frames.feed(chunk)
        hello = messages.decode_from_engine(payloads[0])
        if not isinstance(hello, messages.Hello) or hello.protocol != messages.PROTOCOL:
            writer.close()
            raise EngineDead(f"the engine does not speak protocol {messages.PROTOCOL}: it began with {hello!r:.200}")
        client = cls(hello.info, reader, writer)
        client._start(frames, payloads[1:])
        return client

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def open_requests(self) -> int:
        return len(self._streams)

    async def submit(self, request: EngineRequest) -> RequestStream:
        self._check_alive()
        if request.request_id in self._handles:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", "request_id")
        handle = next(self._numbers)
        data = self._frame(messages.Add(handle, request, time.monotonic()))
        stream = RequestStream(request.request_id, request.params.n)
        self._streams[handle] = stream
        self._handles[request.request_id] = handle
        answer: asyncio.Future[messages.Refused | None] = asyncio.get_running_loop().create_future()
        self._admissions[handle] = answer
        self._writer.write(data)
        try:
            refused = await answer
        except asyncio.CancelledError:
            self.abort(request.request_id)
            raise
        finally:
            self._admissions.pop(handle, None)
        if refused is not None:
            raise _refusal(refused)
        return stream

    def abort(self, request_id: str) -> None:
        handle = self._handles.get(request_id)
        if handle is None:
            return
        self._streams[handle].cancel()
        self._forget(handle)
        self._send(messages.Abort(handle))

    def stop(self, request_id: str, index: int) -> None:
        handle = self._handles.get(request_id)
        if handle is None:
            return
        stream = self._streams[handle]
        stream.stop(index)
        self._send(messages.Stop(handle, index))
        if stream.finished:
            self._forget(handle)

    def cut_off(self, message: str) -> int:
        """End every open request with a final ABORT delta that says `message`; returns how many there were."""
        streams = dict(self._streams)
        for handle, stream in streams.items():
            stream.cut_off(message)
            self._forget(handle)
            self._send(messages.Abort(handle))
        return len(streams)

    async def stats(self) -> EngineStats:
        self._check_alive()
        serial = next(self._numbers)
        answer: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._snapshots[serial] = answer
        self._send(messages.GetStats(serial))
        try:
            return await answer
        finally:
            self._snapshots.pop(serial, None)

    async def close(self) -> None:
        """Close the connection; the engine aborts what is open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._die(EngineDead("the connection to the engine was closed"))

    # --- inside

    def _start(self, frames: FrameReader, payloads: list[bytes]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._receive(frames, payloads), name="engine-connection")

    async def _receive(self, frames: FrameReader, payloads: list[bytes]) -> None:
        """Take the engine's messages until the connection ends, and tell every open request why it did."""
        cause = "the engine process ended unexpectedly"
        try:
            while True:
                for payload in payloads:
                    self._take(messages.decode_from_engine(payload))
                chunk = await self._reader.read(RECEIVE_CHUNK)
                if not chunk:
                    break
                payloads = frames.feed(chunk)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            cause = f"the connection to the engine broke: {type(error).__name__}: {error}"
        self._die(EngineDead(cause))

    def _take(self, message: messages.FromEngine) -> None:
        match message:
            case Step():
                self._take_step(message)
            case messages.Accepted(handle):
                self._admit(handle, None)
            case messages.Refused(handle):
                self._admit(handle, message)
            case messages.Stats(serial, stats):
                snapshot = self._snapshots.get(serial)
                if snapshot is not None and not snapshot.done():
                    snapshot.set_result(stats)
            case messages.Fatal(cause):
                self._die(EngineDead(cause))
            case messages.Hello():
                raise FrameError("a second Hello")

    def _take_step(self, step: Step) -> None:
        def request_id(handle: int) -> str:
            stream = self._streams.get(handle)
            return "" if stream is None else stream.request_id

        for handle, delta in unpack_step(step, request_id):
            stream = self._streams.get(handle)
            if stream is None:
                continue  # aborted or stopped while this was under way
            stream.push(delta)
            if stream.finished:
                self._forget(handle)

    def _admit(self, handle: int, refused: messages.Refused | None) -> None:
        """Hands on a message, not an exception: that would refer to the frame that waits, and be referred to by it."""
        answer = self._admissions.get(handle)
        if refused is not None:
            self._forget(handle)
        if answer is not None and not answer.done():  # else aborted meanwhile
            answer.set_result(refused)

    def _forget(self, handle: int) -> None:
        stream = self._streams.pop(handle, None)
        if stream is not None:
            del self._handles[stream.request_id]

    def _die(self, error: EngineDead) -> None:
        if self._dead is not None:
            return
        self._dead = error
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._handles.clear()
        waiting: list[asyncio.Future[Any]] = [*self._admissions.values(), *self._snapshots.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)
        self._writer.close()
        self.closed.set_result(error)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead.cause)

    def _frame(self, message: messages.ToEngine) -> bytes:
        payload = messages.encode(message)
        if len(payload) > MAX_FRAME:
            raise InvalidRequest(f"the request takes {len(payload)} bytes; at most {MAX_FRAME} are allowed", "prompt")
        return frame(payload)

    def _send(self, message: messages.ToEngine) -> None:
        if self._dead is None:
            self._writer.write(self._frame(message))


def _refusal(message: messages.Refused) -> InvalidRequest | Rejected:
    if message.kind == "invalid":
        return InvalidRequest(message.message, message.param, message.code)
    return Rejected(message.message, message.reason, message.retry_after_seconds)
