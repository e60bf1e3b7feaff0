"""The operator as a whole: informer, queue, workers, health."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import kopf

from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.autoscaling.live import LiveMetrics
from thranite_operator.autoscaling.pages import pages
from thranite_operator.autoscaling.scraper import Scraper
from thranite_operator.health import serving
from thranite_operator.informer import Informer, Key
from thranite_operator.kube import KubeClient, KubeError
from thranite_operator.metrics import OperatorMetrics
from thranite_operator.reconciler import Again, Reconciler
from thranite_operator.settings import Settings
from thranite_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

STUCK_SECONDS = 120.0  # longer than any sum of a reconcile's time-outs in sequence should be
RECONCILE_TIMEOUT = 90.0


class Runner:
    def __init__(self, settings: Settings, connect: Callable[[], kopf.ConnectionInfo]) -> None:
        self._settings = settings
        self._connect = connect
        self._informer: Informer | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Work that was begun is finished."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(KubeClient(self._connect, self._agent))
            queue: WorkQueue[Key] = WorkQueue()
            metrics = OperatorMetrics(queue.__len__, lambda: client.writes)
            live, ready = self._checks(queue)
            settings = self._settings
            autoscaler = Autoscaler(client, Scraper(), queue.add)
            stack.push_async_callback(autoscaler.close)
            metrics.add(LiveMetrics(autoscaler))
            answers = serving(settings.host, settings.port, live, ready, metrics, *pages(autoscaler))
            port = await stack.enter_async_context(answers)
            logger.info("thranite-operator %s; probes and metrics on port %d", settings.version, port)
            informer = Informer(queue.add_from_thread, self._connect, settings.namespaces, self._agent)
            reconciler = Reconciler(client, settings, autoscaler=autoscaler)
            workers = [
                asyncio.create_task(self._work(queue, reconciler, metrics), name=f"worker-{index}")
                for index in range(settings.workers)
            ]
            informer.start()
            self._informer = informer
            try:
                await self._wait(stop, workers)
            finally:
                await asyncio.to_thread(informer.stop)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    @property
    def _agent(self) -> str:
        return f"thranite-operator/{self._settings.version}"

    async def _wait(self, stop: asyncio.Event, workers: list[asyncio.Task[None]]) -> None:
        """Until asked to stop; a worker that ends is a bug, and ends the operator with its error."""
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopping, *workers}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done - {stopping}:
            task.result()

    async def _work(self, queue: WorkQueue[Key], reconciler: Reconciler, metrics: OperatorMetrics) -> None:
        while True:
            key = await queue.take()
            began = time.monotonic()
            try:
                async with asyncio.timeout(RECONCILE_TIMEOUT):
                    again_in = await reconciler.reconcile(key)
            except (KubeError, TimeoutError) as error:
                metrics.reconciles.labels("error").inc()
                logger.warning("%s/%s: %s; again in %.1f s", *key, error or "timed out", queue.failed(key))
            except Exception:
                metrics.reconciles.labels("error").inc()
                logger.exception("%s/%s: a bug; again in %.1f s", *key, queue.failed(key))
            else:
                metrics.reconciles.labels("success").inc()
                self._settle(queue, key, again_in)
            metrics.seconds.observe(time.monotonic() - began)

    def _settle(self, queue: WorkQueue[Key], key: Key, again_in: Again) -> None:
        if again_in.gone:
            queue.forget(key)
            return
        resync = self._settings.resync_seconds * random.uniform(0.8, 1.2)
        queue.done(key, min(resync, again_in.seconds) if again_in.seconds is not None else resync)

    def _checks(self, queue: WorkQueue[Key]) -> tuple[Callable[[], str | None], Callable[[], str | None]]:
        def live() -> str | None:
            if self._informer is not None and not self._informer.alive:
                return "the informer's thread has ended"
            stuck = queue.longest_work
            return f"a reconcile takes {stuck:.0f} s" if stuck > STUCK_SECONDS else None

        def ready() -> str | None:
            return None if self._informer is not None and self._informer.watching else "not watching"

        return live, ready
