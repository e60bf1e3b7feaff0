"""A server process's part in models beside the first, over a fake engine behind a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.runtime.server.test_process import START
from tests.support.engine_thread import EngineThread, engine_thread
from thranite.config import EngineConfig
from thranite.errors import UnsupportedModel
from thranite.ipc import control
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams
from thranite.server.added_models import AddedModels
from thranite.server.context import ServerContext
from thranite.server.directory import ModelDirectory
from thranite.server.errors import ModelUnknown
from thranite.server.metrics_source import MetricsSource
from thranite.server.model_options import ModelDefaults

CONFIG = EngineConfig(model="tiny", device="null", skip_tokenizer_init=True)
LATE = ModelDefaults(CONFIG, generation_config="none").define("late", "models/late", {})


class Models:
    """`told`: what the supervisor heard."""

    def __init__(self, engine: EngineThread) -> None:
        self.told: list[control.FromChild] = []
        self.up = control.EngineUp(str(engine.path), {}, "late", loaded_at=1234)
        self.directory = ModelDirectory(("tiny",), 1)
        metrics = MetricsSource("tiny")
        self.added = AddedModels(START, self.directory, metrics, self.told.append, lambda client, _: client)

    def served(self) -> bool:
        try:
            return self.directory.get("late") is not None
        except ModelUnknown:
            return False


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(engine: EngineThread) -> AsyncIterator[Models]:
    """The model is served."""
    models = Models(engine)
    models.added.add(LATE)
    models.added.engine_up(models.up)
    await until(models.served)
    try:
        yield models
    finally:
        await models.added.close()
        models.directory.close()


@asynccontextmanager
async def leaving(engine: EngineThread) -> AsyncIterator[Models]:
    """The model is being removed, and a request that is open holds that up until it is cut off."""
    async with serving(engine) as models:
        assert models.directory.created("late") == 1234
        client = models.directory.get("late").client
        await client.submit(EngineRequest("open", (5, 6), TokenParams(100_000, 0)))
        models.added.remove("late")
        await asyncio.sleep(0.05)
        assert models.told == [control.ModelServed("late")]
        yield models


def test_a_model_that_is_loaded_again_while_it_leaves_is_served_again() -> None:
    async def run(engine: EngineThread) -> None:
        async with leaving(engine) as models:
            models.added.engine_up(models.up)  # of the model that leaves: it is not served again
            models.added.add(LATE)
            models.added.add(LATE)
            models.added.engine_up(models.up)
            await asyncio.sleep(0.05)
            assert not models.served()
            models.added.cut_off("unloaded", "late")
            await until(models.served)
            assert models.told == [control.ModelServed("late")] * 2

    with engine_thread() as engine:
        asyncio.run(run(engine))


@pytest.mark.parametrize("again", [True, False])
def test_a_model_that_is_removed_while_it_leaves_is_gone_once(again: bool) -> None:
    async def run(engine: EngineThread) -> None:
        async with leaving(engine) as models:
            if again:
                models.added.add(LATE)
            models.added.remove("late")
            models.added.cut_off("unloaded", "late")
            await until(lambda: len(models.told) > 1)
            await asyncio.sleep(0.05)
            assert models.told == [control.ModelServed("late"), control.ModelGone("late")]
            assert not models.served()

    with engine_thread() as engine:
        asyncio.run(run(engine))


def test_a_request_that_is_still_tokenised_is_answered_before_its_model_is_gone() -> None:
    async def answer(context: ServerContext, tokenised: threading.Event) -> str | None:
        await context.in_thread(tokenised.wait)
        stream = await context.client.submit(EngineRequest("late", (5, 6), TokenParams(3, 0)))
        while True:
            for delta in await stream.take():
                if delta.finish_reason is not None:
                    return delta.finish_reason

    async def run(engine: EngineThread) -> None:
        async with serving(engine) as models:
            context, tokenised = models.directory.get("late"), threading.Event()
            answering = asyncio.create_task(answer(context, tokenised))
            await until(lambda: context.preparing == 1)
            models.added.cut_off("put to sleep", "late")  # it woke since
            models.added.remove("late")
            await asyncio.sleep(0.1)
            assert models.told == [control.ModelServed("late")]
            tokenised.set()
            assert await answering == "length"
            await until(lambda: models.told[1:] == [control.ModelGone("late")])

    with engine_thread() as engine:
        asyncio.run(run(engine))


def test_a_cut_off_waits_for_no_tokenising() -> None:
    async def run(engine: EngineThread) -> None:
        async with serving(engine) as models:
            tokenised = threading.Event()
            preparing = asyncio.create_task(models.directory.get("late").in_thread(tokenised.wait))
            await asyncio.sleep(0)
            models.added.remove("late")
            models.added.cut_off("unloaded", "late")
            await until(lambda: models.told[1:] == [control.ModelGone("late")])
            tokenised.set()
            await preparing

    with engine_thread() as engine:
        asyncio.run(run(engine))


def test_a_model_that_no_request_could_use_is_refused_and_may_be_cured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong shows once its engine is there: a chat template, of the options, that is none."""

    async def run(engine: EngineThread) -> None:
        models = Models(engine)
        serve, broken = models.directory.serve, [UnsupportedModel("chat template: line 1: unexpected tag")]

        def serving(*args: Any) -> ServerContext:
            if broken:
                raise broken.pop()
            return serve(*args)

        monkeypatch.setattr(models.directory, "serve", serving)
        models.added.add(LATE)
        models.added.engine_up(models.up)
        cause = "UnsupportedModel: chat template: line 1: unexpected tag"
        await until(lambda: models.told == [control.ModelRefused("late", cause)])
        assert not models.served()
        models.added.add(LATE)
        models.added.engine_up(models.up)
        await until(models.served)
        assert models.told[1:] == [control.ModelServed("late")]
        await models.added.close()
        models.directory.close()

    with engine_thread() as engine:
        asyncio.run(run(engine))


def test_a_model_that_is_not_known_is_gone() -> None:
    async def run(engine: EngineThread) -> None:
        models = Models(engine)
        models.added.remove("late")
        await until(lambda: models.told == [control.ModelGone("late")])
        models.directory.close()

    with engine_thread() as engine:
        asyncio.run(run(engine))
