"""SocketEngineClient against the hub and the step loop, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_thread import EngineThread, engine_thread
from tests.support.fake_stepping_engine import BOOM, INFO, FakeEngine
from thranite.errors import EngineDead, InvalidRequest, Rejected
from thranite.ipc.client import SocketEngineClient
from thranite.ipc.framing import HEADER, frame
from thranite.ipc.messages import PROTOCOL, Accepted, Add, Hello, encode
from thranite.ipc.step_frame import Step
from thranite.ipc.stream import RequestStream
from thranite.request import EngineRequest, FinishReason, SequenceDelta
from thranite.sampling_params import TokenParams

Scene = Callable[[SocketEngineClient], Awaitable[Any]]


def request(name: str = "r", max_tokens: int = 3, n: int = 1, prompt: tuple[int, ...] = (5, 6)) -> EngineRequest:
    return EngineRequest(name, prompt, TokenParams(max_tokens, 0, n=n))


def play(scene: Scene, engine: EngineThread) -> Any:
    """Run `scene` with a connected client."""

    async def run() -> Any:
        client = await SocketEngineClient.connect(engine.path)
        try:
            return await asyncio.wait_for(scene(client), 20)
        finally:
            await client.close()

    return asyncio.run(run())


async def collect(stream: RequestStream) -> list[SequenceDelta]:
    deltas: list[SequenceDelta] = []
    while news := await stream.take():
        deltas += news
    return deltas


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_in_parallel() -> None:
    async def scene(client: SocketEngineClient) -> Any:
        assert client.info == INFO
        streams = [await client.submit(request(f"r{i}", 4, n=1 + i % 3)) for i in range(20)]
        return await asyncio.gather(*(collect(stream) for stream in streams))

    with engine_thread() as engine:
        results = play(scene, engine)
    for i, deltas in enumerate(results):
        for index in range(1 + i % 3):
            mine = [delta for delta in deltas if delta.index == index]
            assert [token for delta in mine for token in delta.token_ids] == [10, 11, 12, 13]
            assert mine[-1].finish_reason is FinishReason.LENGTH
            assert {delta.request_id for delta in mine} == {f"r{i}"}


def test_the_engine_learns_when_a_request_was_sent() -> None:
    async def scene(client: SocketEngineClient) -> tuple[float, float]:
        began = time.monotonic()
        await client.submit(request("a", 2))
        return began, time.monotonic()

    with engine_thread() as engine:
        began, ended = play(scene, engine)
        [arrival] = engine.engine.arrivals
        assert arrival is not None
        assert began <= arrival <= ended


def test_refusals_carry_the_engines_words() -> None:
    async def scene(client: SocketEngineClient) -> None:
        with pytest.raises(InvalidRequest) as invalid:
            await client.submit(request(prompt=()))
        assert (invalid.value.message, invalid.value.param, invalid.value.code) == (
            "the prompt is empty",
            "prompt",
            "empty",
        )
        await client.submit(request("a", 10_000))
        with pytest.raises(InvalidRequest, match="in use"):
            await client.submit(request("a"))
        with pytest.raises(Rejected) as rejected:
            await client.submit(request("b"))
        assert (rejected.value.reason, rejected.value.retry_after_seconds) == ("queue_full", 3.0)
        assert client.open_requests == 1

    with engine_thread(FakeEngine(0.002, max_requests=1)) as engine:
        play(scene, engine)


def test_abort_ends_the_stream_and_frees_the_engine() -> None:
    async def scene(client: SocketEngineClient) -> None:
        stream = await client.submit(request("a", 10_000))
        await stream.take()
        client.abort("a")
        assert await collect(stream) == []
        client.abort("a")
        client.abort("never seen")
        await until(lambda: engine.engine.finished["abort"] == 1)
        again = await client.submit(request("a", 2))
        assert len(await collect(again)) == 2

    with engine_thread() as engine:
        play(scene, engine)


def test_a_cancelled_submit_leaves_nothing_behind() -> None:
    async def scene(client: SocketEngineClient) -> None:
        task = asyncio.create_task(client.submit(request("a", 10_000)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.open_requests == 0
        await until(lambda: engine.engine.finished["abort"] == 1)

    with engine_thread(FakeEngine(0.05)) as engine:
        play(scene, engine)


def test_stop_ends_one_sample() -> None:
    async def scene(client: SocketEngineClient) -> None:
        both = await client.submit(request("b", 200, n=2))
        first = (await both.take())[0]
        client.stop("b", first.index)
        rest = await collect(both)
        assert {delta.index for delta in rest} == {1 - first.index}
        assert rest[-1].finish_reason is FinishReason.LENGTH

    with engine_thread() as engine:
        play(scene, engine)


def test_cut_off_gives_every_open_sample_a_last_delta() -> None:
    async def scene(client: SocketEngineClient) -> None:
        stream = await client.submit(request("a", 10_000, n=2))
        await stream.take()
        assert client.cut_off("good bye") == 1
        deltas = await collect(stream)
        assert [(d.index, d.finish_reason, d.error) for d in deltas[-2:]] == [
            (0, FinishReason.ABORT, "good bye"),
            (1, FinishReason.ABORT, "good bye"),
        ]
        await until(lambda: engine.engine.finished["abort"] == 1)

    with engine_thread() as engine:
        play(scene, engine)


def test_a_dying_engine_fails_everything_that_is_open() -> None:
    async def scene(client: SocketEngineClient) -> None:
        stream = await client.submit(request("a", 10_000))
        await stream.take()
        doomed = await client.submit(request("b", 5, prompt=(BOOM,)))
        for each in (stream, doomed):
            with pytest.raises(EngineDead, match="boom"):
                await collect(each)
        assert (await client.closed).cause == "RuntimeError: boom"
        with pytest.raises(EngineDead):
            await client.submit(request("c"))
        with pytest.raises(EngineDead):
            await client.stats()

    with engine_thread() as engine:
        play(scene, engine)


def test_stats_are_of_the_moment() -> None:
    async def scene(client: SocketEngineClient) -> None:
        assert (await client.stats()).requests_running == 0
        await client.submit(request("a", 10_000))
        assert (await client.stats()).requests_running == 1
        client.abort("a")
        assert (await client.stats()).requests_finished_total == {"abort": 1}

    with engine_thread() as engine:
        play(scene, engine)


def test_a_dead_server_process_aborts_its_requests_only() -> None:
    async def scene(survivor: SocketEngineClient) -> None:
        stream = await survivor.submit(request("mine", 10_000))
        other = await SocketEngineClient.connect(engine.path)
        await other.submit(request("theirs", 10_000))
        await other.close()
        await until(lambda: engine.engine.finished["abort"] == 1)
        await stream.take()
        assert (await survivor.stats()).requests_running == 1

    with engine_thread() as engine:
        play(scene, engine)


def test_a_peer_that_does_not_read_is_dropped_and_does_not_hold_up_others() -> None:
    async def scene(client: SocketEngineClient) -> None:
        with socket.socket(socket.AF_UNIX) as sleeper:
            sleeper.connect(str(engine.path))
            for handle in range(200):
                sleeper.sendall(frame(encode(Add(handle, request(f"s{handle}", 1_000_000)))))
            await until(lambda: engine.closed == [2])
            await until(lambda: engine.engine.finished["abort"] == 200)
            assert len(await collect(await client.submit(request("a", 5)))) == 5

    with engine_thread(FakeEngine(0.0, max_requests=1000), send_limit=100_000) as engine:
        play(scene, engine)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", HEADER.pack(3) + b"\xc1\xc1\xc1", frame(b"\x92\x63\x01")])
def test_a_peer_that_breaks_the_protocol_is_dropped(garbage: bytes) -> None:
    async def scene(client: SocketEngineClient) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(engine.path))
            peer.sendall(garbage)
            await until(lambda: engine.closed == [2])
        assert len(await collect(await client.submit(request("a", 5)))) == 5

    with engine_thread() as engine:
        play(scene, engine)


def test_no_engine_to_connect_to(tmp_path: Path) -> None:
    with pytest.raises(EngineDead, match="does not listen"):
        asyncio.run(SocketEngineClient.connect(tmp_path / "nothing.sock"))


def test_an_engine_that_breaks_the_protocol_fails_everything_that_is_open(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(encode(Hello(PROTOCOL, INFO))))
        await reader.read(1)
        writer.write(frame(encode(Accepted(1))) + frame(encode(Step([1, 1], [0], [5], [], [], []))))
        await reader.read()
        writer.close()

    async def scene() -> None:
        server = await asyncio.start_unix_server(engine, tmp_path / "engine.sock")
        client = await SocketEngineClient.connect(tmp_path / "engine.sock")
        with pytest.raises(EngineDead, match="broke"):
            await collect(await client.submit(request()))
        await client.close()
        server.close()

    asyncio.run(scene())
