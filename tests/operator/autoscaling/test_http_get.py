"""The little HTTP that scrapes need, against servers that do it right and wrong."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.support.apiserver import free_ports
from thranite_operator.autoscaling.http_get import MAX_ANSWER, BadAnswer, body_of, get

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 3\r\n\r\na 1",
        HEAD + b"content-length:3\r\nConnection: close\r\n\r\na 1",
        HEAD + b"\r\na 1",
        b"HTTP/1.0 200\r\n\r\na 1",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\na \r\n1;x=y\r\n1\r\n0\r\n\r\n",
    ],
)
def test_whole_answers(answer: bytes) -> None:
    assert body_of(answer) == b"a 1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "ended at once"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "within the answer's head"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "within the answer's head"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading", "HTTP 503"),
        (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere/\r\n\r\n", "HTTP 307"),
        (HEAD + b"Content-Length: 30\r\n\r\na 1", "3 bytes of 30"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\na 1", "encoded"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\na 1", "transfer encoding gzip"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\na 1\r\n", "within the answer's chunks"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\na 1", "within the answer's chunks"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\na 1\r\n0\r\n\r\n", "within the answer's chunks"),
    ],
)
def test_other_answers_are_refused(answer: bytes, words: str) -> None:
    with pytest.raises(BadAnswer, match=words):
        body_of(answer)


async def asked(answer: bytes, host: str = "127.0.0.1") -> tuple[bytes, bytes]:
    """What a server was asked, and the body that came of its answer."""
    questions: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        questions.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()
        with suppress(ConnectionError):  # who asked may have heard enough
            await writer.wait_closed()
        ended.set()

    (port,) = free_ports(1)
    async with await asyncio.start_server(serve, host, port):
        async with asyncio.timeout(5):
            try:
                body = await get(host, port, "/metrics?name[]=a")
            finally:
                await ended.wait()
    return questions[0], body


def test_what_is_asked() -> None:
    question, body = asyncio.run(asked(HEAD + b"\r\na 1"))
    first, *fields = question.decode().split("\r\n")
    assert first == "GET /metrics?name[]=a HTTP/1.1"
    assert {"Connection: close", "User-Agent: thranite-operator", "Accept: text/plain"} <= set(fields)
    assert body == b"a 1"


def test_an_address_of_ipv6() -> None:
    question, body = asyncio.run(asked(HEAD + b"\r\na 1", "::1"))
    assert b"\r\nHost: [::1]:" in question
    assert body == b"a 1"


def test_an_answer_without_end_is_given_up() -> None:
    with pytest.raises(BadAnswer, match="more than"):
        asyncio.run(asked(HEAD + b"\r\n" + b"a" * (MAX_ANSWER + 1)))


def test_nobody_is_there() -> None:
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(get("127.0.0.1", free_ports(1)[0], "/"))
