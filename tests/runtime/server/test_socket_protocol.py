"""GuardedSocket on a transport that notes what is written: a shutdown beside a client that closes, or was refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from thranite.server.socket_protocol import GuardedSocket


class Wire(asyncio.Transport):
    """One connection's end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def accept(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"no"})


async def connect(app: Any) -> tuple[GuardedSocket, Wire, ClientProtocol]:
    """After the answer to the handshake."""
    config, wire = Config(app, lifespan="off", log_config=None), Wire()
    config.load()
    socket = GuardedSocket(config=config, server_state=ServerState(), app_state={})
    socket.connection_made(wire)
    client = ClientProtocol(parse_uri("ws://127.0.0.1/"))
    client.send_request(client.connect())
    socket.data_received(b"".join(client.data_to_send()))
    async with asyncio.timeout(10):
        while not wire.written.endswith((b"\r\n\r\n", b"no")):
            await asyncio.sleep(0.001)
    client.receive_data(wire.written)
    wire.written = b""
    return socket, wire, client


@pytest.mark.parametrize("closes", [False, True])
def test_shutdown_closes_whether_the_client_has_just_closed_or_not(closes: bool) -> None:
    """One closing frame either way: the server's own, or its answer."""

    async def run() -> None:
        socket, wire, client = await connect(accept)
        if closes:
            client.send_close(1000)
            socket.data_received(b"".join(client.data_to_send()))
        socket.shutdown()
        assert wire.closed
        client.receive_data(wire.written)
        assert client.close_rcvd is not None
        assert client.close_rcvd.code == (1000 if closes else 1012)
        socket.connection_lost(None)

    asyncio.run(run())


def test_shutdown_closes_what_was_refused() -> None:
    async def run() -> None:
        socket, wire, _ = await connect(refuse)
        wire.closed = False
        socket.shutdown()
        assert wire.closed
        assert wire.written == b""
        socket.connection_lost(None)

    asyncio.run(run())
