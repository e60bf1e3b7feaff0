"""WebSockets as uvicorn has them, but for clients that do not keep up, which are dropped as `http_protocol` drops them,
and for those that close while the server does."""

from __future__ import annotations

from asyncio import BaseTransport
from typing import TYPE_CHECKING

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from thranite.server.http_protocol import SlowReader

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


class GuardedSocket(WebSocketsSansIOProtocol):
    client_timeout = 30.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._reader = SlowReader(self.transport, self.loop, self.client_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.resumed()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.resumed()

    def shutdown(self) -> None:
        """uvicorn would send a closing frame, fail where the client's has just come, and leave all other connections
        open."""
        if self.handshake_complete and not self.close_sent and self.conn.state is not State.OPEN:
            self.stop_keepalive()
            self.transport.close()
        else:
            super().shutdown()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused is answered, too: uvicorn would log that the handshake is missing
