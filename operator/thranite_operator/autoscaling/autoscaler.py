"""The loop: for each InferenceService in mode Internal, look at its pods, decide, write the wish."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from thranite_operator.autoscaling.decision import Decision
from thranite_operator.autoscaling.follower import SAMPLES_KEPT, Follower
from thranite_operator.autoscaling.live import DecisionCounts
from thranite_operator.autoscaling.report import Report
from thranite_operator.autoscaling.rescale import rescale
from thranite_operator.autoscaling.scraper import Scraper
from thranite_operator.events import EventPoster, Transition
from thranite_operator.kube import KubeClient, KubeError
from thranite_operator.pods import Pod
from thranite_operator.spec import InferenceService

logger = logging.getLogger(__name__)

Key = tuple[str, str]
ALL_SAMPLES_KEPT = 200_000  # of pods, in the moments of all services together: what bounds the memory
FIRST_SECONDS = 5.0  # services of an operator that starts are spread over so long, or their interval if that is less


@dataclass(slots=True)
class _Followed:
    follower: Follower
    task: asyncio.Task[None]


class Autoscaler:
    """The reconciler tells it what it sees and asks it what to say; `enqueue` has a service reconciled, so that the
    status is written where it always is. Everything runs in one event loop."""

    def __init__(
        self,
        client: KubeClient,
        scraper: Scraper,
        enqueue: Callable[[Key], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._scraper = scraper
        self._enqueue = enqueue
        self._clock = clock
        self._events = EventPoster(client)
        self._followed: dict[Key, _Followed] = {}
        self.counts = DecisionCounts()

    def observe(self, service: InferenceService, pods: Sequence[Pod]) -> Report | None:
        """What the status shall say; None where nothing is scaled here."""
        key, spec = (service.namespace, service.name), service.spec.autoscaling
        known = self._followed.get(key)
        if spec is None or spec.mode != "Internal":
            self.forget(key)
            return None
        if known is None or known.follower.service.uid != service.uid:
            self.forget(key)
            follower = Follower(service, spec, self._clock())
            known = self._followed[key] = _Followed(follower, asyncio.create_task(self._follow(key, follower)))
        known.follower.observe(service, spec, pods)
        return known.follower.report

    def forget(self, key: Key) -> None:
        known = self._followed.pop(key, None)
        if known is not None:
            known.task.cancel()
            self.counts.forget(key)

    async def close(self) -> None:
        tasks = [known.task for known in self._followed.values()]
        for key in list(self._followed):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    def followers(self) -> Iterator[tuple[Key, Follower]]:
        yield from ((key, known.follower) for key, known in self._followed.items())

    def follower(self, key: Key) -> Follower | None:
        known = self._followed.get(key)
        return known.follower if known is not None else None

    @property
    def scraper(self) -> Scraper:
        return self._scraper

    async def _follow(self, key: Key, follower: Follower) -> None:
        """Rounds at a steady pace; one that takes longer than the interval is followed by the next at once."""
        loop = asyncio.get_running_loop()
        due = loop.time() + random.uniform(0, min(FIRST_SECONDS, follower.spec.interval_seconds))
        while True:
            await asyncio.sleep(max(due - loop.time(), 0))
            due = max(due + follower.spec.interval_seconds, loop.time())
            try:
                await self._round(key, follower)
            except Exception:
                logger.exception("%s/%s: autoscaling: a bug; again in %d s", *key, follower.spec.interval_seconds)

    async def _round(self, key: Key, follower: Follower) -> None:
        follower.samples_kept = min(SAMPLES_KEPT, ALL_SAMPLES_KEPT // max(len(self._followed), 1))
        follower.remember(await self._scraper.scrape(follower.targets()))
        now, service = self._clock(), follower.service
        decision = follower.decide(now, self._scraper.now())
        failure = None
        if decision.desired != follower.current:
            try:
                if not await rescale(self._client, service, follower.current, decision.desired):
                    return  # the reconciler will have seen more by the next round
            except (KubeError, TimeoutError) as error:
                failure = str(error) or type(error).__name__
                logger.warning("%s/%s: replicas cannot be written: %s", *key, failure)
        self.counts.add(key, decision.reason)
        if follower.settle(decision, failure, now):
            self._enqueue(key)
        if failure is None and decision.desired != service.spec.replicas:
            await self._tell(service, decision, now)

    async def _tell(self, service: InferenceService, decision: Decision, now: float) -> None:
        logger.info("%s/%s: replicas %s", service.namespace, service.name, decision.message)
        event = Transition("Normal", "SuccessfulRescale", decision.message)
        try:
            await self._events.post(service, event, datetime.fromtimestamp(now, UTC))
        except KubeError as error:
            logger.warning("%s/%s: no event is posted: %s", service.namespace, service.name, error)
