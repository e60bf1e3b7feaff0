"""kopf as informer: watches that only enqueue keys. It runs in a thread of its own, under a loop that starts it again.

kopf ends with its whole operator on watch errors it does not know, and cancels every task of its event loop then. In
its own loop it takes nothing with it, and what it missed comes with the list it begins with.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import kopf

from thranite_operator import credentials, names
from thranite_operator.kinds import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    NETWORK_POLICY,
    POD,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from thranite_operator.kube import KubeClient, KubeError

logger = logging.getLogger(__name__)

Key = tuple[str, str]
WATCHED = (
    *(DEPLOYMENT, POD, JOB, CLAIM, SERVICE, SERVICE_ACCOUNT),
    *(CONTROLLER_REVISION, DISRUPTION_BUDGET, NETWORK_POLICY),
)
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 15.0
# By default kopf asks for the user's name, which a container's uid need not have.
IDENTITY: Any = names.FIELD_MANAGER
WATCH_TASK = "watcher for "  # how kopf names the task of a watch
END_SECONDS = 8.0  # kopf waits 5 s for the handlers of what it has seen
CANCEL_SECONDS, CANCEL_AGAIN_SECONDS = 5.0, 0.5
HEALTHY_SECONDS = 60.0  # a run of this length starts the backoff anew
CRD_TIMEOUT, CRD_PAUSE = 5.0, 2.0


class WatchLost(Exception):
    """Some objects are no longer watched."""


@dataclass(frozen=True, kw_only=True)
class Login(kopf.AiohttpSession):
    """Equal to another of the same credentials: kopf takes up none that were refused before."""

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    info: kopf.ConnectionInfo


class Sessions:
    """kopf's sessions of one run. It closes those that it ends with, but not where its end is cut short."""

    def __init__(self, connect: Callable[[], kopf.ConnectionInfo]) -> None:
        self._connect = connect
        self._made: list[aiohttp.ClientSession] = []

    async def login(self, **_: Any) -> Login:
        info = await asyncio.to_thread(self._connect)
        session = credentials.session(info, connections=0)
        self._made = [*(made for made in self._made if not made.closed), session]
        return Login(server=info.server, expiration=info.expiration, info=info, aiohttp_session=session)

    async def close(self) -> None:
        for session in self._made:
            await session.close()


def key_of(body: Mapping[str, Any]) -> Key | None:
    """The InferenceService that a watched object is, or belongs to."""
    meta = body.get("metadata", {})
    name = meta.get("name") if body.get("kind") == names.KIND else meta.get("labels", {}).get(names.INSTANCE)
    return (meta["namespace"], name) if name else None


class Informer:
    """`enqueue` is called from the informer's thread."""

    def __init__(
        self,
        enqueue: Callable[[Key], None],
        connect: Callable[[], kopf.ConnectionInfo],
        namespaces: Sequence[str],
        user_agent: str = names.FIELD_MANAGER,
    ) -> None:
        self._enqueue = enqueue
        self._connect = connect
        self._namespaces = namespaces
        self._agent = user_agent
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._end_run: Callable[[], object] | None = None  # guarded by the lock: its loop may be closed otherwise
        self._thread = threading.Thread(target=self._supervise, name="informer", daemon=True)
        self._watching = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 15.0) -> None:
        self._stop.set()
        with self._lock:
            if self._end_run is not None:
                self._end_run()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def watching(self) -> bool:
        """False before kopf has started, between an end of its and the next start, and while there is no CRD."""
        return self._watching.is_set()

    def _supervise(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            # Not asyncio.run: it waits for every task, however long that takes to end.
            loop = asyncio.new_event_loop()
            try:
                lasted = loop.run_until_complete(self._run_once())
            finally:
                loop.close()
            if self._stop.is_set():
                return
            backoff = FIRST_BACKOFF if lasted > HEALTHY_SECONDS else min(backoff * 2, LONGEST_BACKOFF)
            logger.warning("watching ended after %.0f s; starting again in about %.0f s", lasted, backoff)
            self._stop.wait(backoff * random.uniform(0.75, 1.25))

    async def _run_once(self) -> float:
        """Seconds that it ran."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        # Not the thread's own event: kopf would wait for that in a thread, which the end of the loop then waits for.
        stop = asyncio.Event()
        with self._lock:
            self._end_run = functools.partial(loop.call_soon_threadsafe, stop.set)
        if self._stop.is_set():
            stop.set()
        sessions = Sessions(self._connect)
        scope: dict[str, Any] = {"namespaces": list(self._namespaces)} if self._namespaces else {"clusterwide": True}
        try:
            if await self._crd_served(stop):
                await until_over(
                    kopf.operator(
                        registry=self._registry(sessions),
                        settings=_settings(),
                        identity=IDENTITY,
                        standalone=True,
                        stop_flag=stop,
                        ready_flag=self._watching,
                        **scope,
                    )
                )
        except Exception as error:  # noqa: BLE001 - whatever ended it, watching must go on
            # As text: a record that is kept would keep the error's traceback, and with it all of that kopf.
            logger.warning("watching failed: %s", f"{type(error).__name__}: {error}")
        finally:
            self._watching.clear()
            with self._lock:
                self._end_run = None
            await end_others(CANCEL_SECONDS)
            await sessions.close()
        return loop.time() - began

    async def _crd_served(self, stop: asyncio.Event) -> bool:
        """Wait for the API server and the CRD. kopf would look once, and then watch the other kinds alone, for ever."""
        told = False
        async with KubeClient(self._connect, self._agent) as client:
            while not stop.is_set():
                try:
                    async with asyncio.timeout(CRD_TIMEOUT):
                        if await client.serves(names.API_VERSION, names.PLURAL):
                            return True
                    reason = f"the cluster has no {names.PLURAL}.{names.GROUP}: apply the CRD"
                except (KubeError, TimeoutError) as error:
                    reason = str(error) or "the API server does not answer"
                if not told:
                    logger.warning("waiting: %s", reason)
                    told = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CRD_PAUSE):
                        await stop.wait()
        return False

    def _registry(self, sessions: Sessions) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def see(body: Mapping[str, Any], **_: Any) -> None:  # kopf runs other functions in threads
            key = key_of(body)
            if key is not None:
                self._enqueue(key)

        kopf.on.login(registry=registry)(sessions.login)
        kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(see)
        for kind in WATCHED:
            kopf.on.event(*_address(kind), registry=registry)(see)
        return registry


async def until_over(operator: Coroutine[Any, Any, None]) -> None:
    """Wait for kopf's end; after a watch has failed, only for so long. Whoever calls it cancels what is left.

    A watch that fails is to end its operator. With several failing at once kopf 1.45 was seen to wait for ever.
    """
    failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def look(task: asyncio.Task[Any]) -> None:
        if task.get_name().startswith(WATCH_TASK) and not task.cancelled() and not failed.done():
            error = task.exception()
            if error is not None:
                failed.set_result(error)

    asyncio.get_running_loop().set_task_factory(_looking(look))
    running: asyncio.Future[Any] = asyncio.create_task(operator)
    await asyncio.wait({running, failed}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await asyncio.wait({running}, timeout=END_SECONDS)
    if not running.done():
        raise WatchLost(f"{failed.result()}, and kopf did not end")
    await running


async def end_others(seconds: float) -> None:
    """End the loop's generators, and cancel its other tasks until none is left, for at most so long: kopf's watches
    were seen to lose one cancellation, and to go on.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        left = deadline - loop.time()
        if left <= 0:
            logger.warning("tasks of kopf's that do not end are left: %s", ", ".join(t.get_name() for t in others))
            return
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=min(CANCEL_AGAIN_SECONDS, left))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(loop.shutdown_asyncgens(), max(deadline - loop.time(), CANCEL_AGAIN_SECONDS))


def _looking(look: Callable[[asyncio.Task[Any]], object]) -> Callable[..., asyncio.Task[Any]]:
    """A factory of tasks that shows each one at its end. A task has its name by then, if not before."""

    def make(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        task.add_done_callback(look)
        return task

    return make


def _address(kind: Kind) -> tuple[str, str, str]:
    return kind.group, kind.api_version.rpartition("/")[2], kind.plural


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # it would need to read all CustomResourceDefinitions and Namespaces
    settings.watching.initial_streaming = False  # the oldest supported Kubernetes cannot
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    # A worker serves one object and stays for a while after its event: with few of them, objects would wait for those.
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 0.2
    for kind in WATCHED:
        settings.watching.label_selectors[_address(kind)] = f"{names.MANAGED_BY}={names.FIELD_MANAGER}"
    return settings
