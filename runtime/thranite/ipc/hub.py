"""The engine's socket thread: all of its connections, one selector, no blocking write.

Connection 0 is the supervisor's; the others are server processes'. What arrives is handed to callbacks on this thread;
what is to be sent is posted from any thread and encoded here, beside the step loop's wait for the device. A peer that
does not read is dropped when its unsent bytes exceed a bound: it cannot hold up the engine.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from thranite.ipc import control
from thranite.ipc.framing import MAX_FRAME, FrameError, FrameReader
from thranite.ipc.outbound import ToServer, frames_of

logger = logging.getLogger(__name__)

CONTROL = 0
SEND_LIMIT = 2 * MAX_FRAME  # unsent bytes a connection
RECEIVE_CHUNK = 256 * 1024

Message = ToServer | control.FromChild


class _Connection:
    """One peer: its partial input and its unsent output."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.number = number
        self.socket = sock
        self.reader = FrameReader()
        self.unsent = bytearray()

    def write(self) -> None:
        """Send what the kernel takes now. Raises OSError when the peer is gone."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except BlockingIOError:
                return
            del self.unsent[:sent]


class Hub:
    """Runs from `start()` to `close()`. `on_payload`, `on_closed` and `on_tick` are called on its thread."""

    def __init__(
        self,
        supervisor: socket.socket,
        *,
        on_payload: Callable[[int, bytes], None],
        on_open: Callable[[int], None],
        on_closed: Callable[[int], None],
        on_tick: Callable[[], None],
        tick_seconds: float = 0.25,
        send_limit: int = SEND_LIMIT,
    ) -> None:
        self._on_payload, self._on_open, self._on_closed, self._on_tick = on_payload, on_open, on_closed, on_tick
        self._tick_seconds = tick_seconds
        self._send_limit = send_limit
        self._selector = selectors.DefaultSelector()
        self._chunk = memoryview(bytearray(RECEIVE_CHUNK))  # a new one for each read would fragment the heap
        self._connections: dict[int, _Connection] = {}
        self._next_number = CONTROL
        self._listener: socket.socket | None = None
        self._outbox: deque[tuple[int | None, Message]] = deque()
        self._waker, self._wakee = socket.socketpair()
        self._waking = threading.Lock()  # a waker closed meanwhile could be another file by the time it is written to
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._closing = threading.Event()
        self._selector.register(self._wakee, selectors.EVENT_READ, "wake")
        self._add(supervisor)
        self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of server processes. Called once, from any thread."""
        listener.setblocking(False)
        self._listener = listener
        self._wake()

    def post(self, connection: int, message: Message) -> None:
        """Send in order, soon. Dropped if the connection or the thread is gone. Callable from any thread."""
        self._outbox.append((connection, message))
        self._wake()

    def broadcast(self, message: ToServer) -> None:
        """Send to every server process."""
        self._outbox.append((None, message))
        self._wake()

    def close(self, flush_seconds: float = 1.0) -> None:
        """Send what is posted, for at most `flush_seconds`, close every socket and end the thread."""
        self._closing.set()
        self._wake()
        self._thread.join(flush_seconds + self._tick_seconds)

    def _wake(self) -> None:
        with self._waking:
            if self._waker.fileno() < 0:
                return  # the thread has ended
            try:
                self._waker.send(b"\0")
            except BlockingIOError:
                return  # enough wake-ups are waiting already

    # --- on the thread

    def _run(self) -> None:
        next_tick = time.monotonic()
        while not (self._closing.is_set() and self._flushed()):
            if time.monotonic() >= next_tick:
                self._on_tick()
                next_tick = time.monotonic() + self._tick_seconds
            self._register_listener()
            for key, events in self._selector.select(max(next_tick - time.monotonic(), 0)):
                self._dispatch(key, events)
            self._send_posted()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        if self._listener is not None:
            self._listener.close()
        with self._waking:
            self._waker.close()
        self._wakee.close()
        self._selector.close()

    def _flushed(self) -> bool:
        return not self._outbox and not any(connection.unsent for connection in self._connections.values())

    def _register_listener(self) -> None:
        if self._listener is not None and self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ, "accept")

    def _dispatch(self, key: selectors.SelectorKey, events: int) -> None:
        if key.data == "wake":
            self._wakee.recv(4096)
        elif key.data == "accept":
            self._accept()
        elif key.data.number in self._connections:
            if events & selectors.EVENT_WRITE:
                self._write(key.data)
            if events & selectors.EVENT_READ:
                self._read(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        self._on_open(self._add(sock))

    def _add(self, sock: socket.socket) -> int:
        connection = _Connection(self._next_number, sock)
        self._next_number += 1
        self._connections[connection.number] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return connection.number

    def _read(self, connection: _Connection) -> None:
        try:
            size = connection.socket.recv_into(self._chunk)
            for payload in connection.reader.feed(self._chunk[:size]):
                self._on_payload(connection.number, payload)
        except BlockingIOError:
            return
        except (OSError, FrameError, msgspec.DecodeError) as error:
            self._drop(connection, str(error))
            return
        if not size:
            self._drop(connection, "closed by the peer")

    def _send_posted(self) -> None:
        while self._outbox:
            number, message = self._outbox.popleft()
            targets = [n for n in self._connections if n != CONTROL] if number is None else [number]
            frames = frames_of(message)
            for connection in [self._connections[n] for n in targets if n in self._connections]:
                for data in frames:
                    connection.unsent += data
                self._write(connection)

    def _write(self, connection: _Connection) -> None:
        if connection.number not in self._connections:
            return
        try:
            connection.write()
        except OSError as error:
            self._drop(connection, str(error))
            return
        if len(connection.unsent) > self._send_limit:
            self._drop(connection, f"does not read: {len(connection.unsent)} bytes are unsent")
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.socket).events != wanted:
            self._selector.modify(connection.socket, wanted, connection)

    def _drop(self, connection: _Connection, reason: str) -> None:
        logger.info("connection %d dropped: %s", connection.number, reason)
        del self._connections[connection.number]
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._on_closed(connection.number)
