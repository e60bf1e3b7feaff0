"""An asyncio end of a supervisor-child socket pair: frames out, payloads in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from thranite.ipc import control
from thranite.ipc.framing import FrameReader, frame

RECEIVE_CHUNK = 64 * 1024


class Channel:
    """Belongs to one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Takes `sock` over."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: control.ToChild | control.FromChild) -> None:
        """Messages are few and small: they are buffered, never waited for. Lost if the peer is gone."""
        if not self._writer.is_closing():
            self._writer.write(frame(control.encode(message)))

    async def payloads(self) -> AsyncIterator[bytes]:
        """Until the peer closes its end."""
        frames = FrameReader()
        while chunk := await self._read():
            for payload in frames.feed(chunk):
                yield payload

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(RECEIVE_CHUNK)
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the peer closed first
