"""What requests for one model share in a server process: engine, tokenizer, settings, threads, seeds."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import thranite
from thranite.engine.client import EngineClient
from thranite.server.settings import ServerSettings
from thranite.text.tokenizer import Tokenizer

T = TypeVar("T")


class ServerContext:
    """Belongs to one event loop. `threads`: those of all models, which tokenise; `compiling`: for
    requests whose grammar is compiled, too, which may take seconds. `preparing`: requests in them, or that
    wait for them; what comes out reaches the engine before the event loop goes on."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer | None,
        settings: ServerSettings,
        threads: ThreadPoolExecutor,
        compiling: ThreadPoolExecutor,
    ) -> None:
        self.client = client
        self.settings = settings
        override = settings.chat_template
        self.tokenizer = tokenizer.with_chat_template(override) if tokenizer and override else tokenizer
        self.preparing = 0
        self._threads, self._compiling = threads, compiling
        self._seeds = random.Random(f"{client.info.seed}:{settings.process_index}")
        self.fingerprint = _fingerprint(client, settings)

    def next_seed(self) -> int:
        """For a request that brings none: reproducible from the engine's seed and the order of requests."""
        return self._seeds.getrandbits(63)

    async def in_thread(self, work: Callable[[], T], compiles: bool = False) -> T:
        """Run tokenising off the event loop, which goes on meanwhile: see `Tokenizer.encode`. `compiles`: a grammar."""
        threads = self._compiling if compiles else self._threads
        self.preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work)
        finally:
            self.preparing -= 1


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _fingerprint(client: EngineClient, settings: ServerSettings) -> str:
    """Changes with model, type and version of this runtime only: where it is the same, seeded answers are."""
    info = client.info
    parts = (thranite.__version__, settings.served_model_names[0], info.architecture, info.dtype)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
