"""One level-based reconcile: observe, plan, apply, write the status once, tell transitions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from thranite_operator import names, status
from thranite_operator.apply import carry_out
from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.conditions import FORBIDDEN
from thranite_operator.events import EventPoster, transitions
from thranite_operator.kinds import INFERENCE_SERVICE, Object
from thranite_operator.kube import KubeClient, KubeError, Refused
from thranite_operator.observed import observe
from thranite_operator.plan import make_plan
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, parse_service
from thranite_operator.start_time import StartTimes

logger = logging.getLogger(__name__)

Key = tuple[str, str]  # namespace, name

FORBIDDEN_RETRY_SECONDS = 30.0  # nothing tells when a quota has room or a role is bound


@dataclass(frozen=True, slots=True)
class Again:
    """`seconds` until the key should come again though nothing changes; None if it need not. `gone`: no such object."""

    seconds: float | None = None
    gone: bool = False


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    def __init__(
        self,
        client: KubeClient,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._events = EventPoster(client)
        self._began = clock()
        self._starts: dict[Key, StartTimes] = {}
        self._autoscaler = autoscaler

    async def reconcile(self, key: Key) -> Again:
        """Raises KubeError, after the status says so where it can."""
        namespace, name = key
        obj = await self._client.get(INFERENCE_SERVICE, namespace, name)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            self._starts.pop(key, None)
            if self._autoscaler is not None:
                self._autoscaler.forget(key)
            return Again(gone=obj is None)
        service = parse_service(obj)
        try:
            again, after = await self._converge(key, service)
        except KubeError as error:
            await self._report_failure(service, error)
            raise
        await self._write_status(service, after)
        return again

    async def _converge(self, key: Key, service: InferenceService) -> tuple[Again, Object]:
        now = self._clock()
        observed = await observe(self._client, service)
        plan = make_plan(service, observed, self._settings, now)
        problems = await carry_out(self._client, service, plan)
        known = service.status.get("expectedStartSeconds")
        starts = self._starts.get(key, StartTimes(self._began))
        expected, self._starts[key] = starts.learn(known, observed.pods)
        report = self._autoscaler.observe(service, observed.pods) if self._autoscaler is not None else None
        delays = [delay for delay in (plan.model.retry_in, plan.model.look_in) if delay is not None]
        if any(problem.reason == FORBIDDEN for problem in problems):
            delays.append(FORBIDDEN_RETRY_SECONDS)
        again = Again(min(delays, default=None))
        return again, status.compute(service, observed, plan, problems, expected, now, report)

    async def _report_failure(self, service: InferenceService, error: KubeError) -> None:
        try:
            await self._write_status(service, status.failed(service, str(error), self._clock()))
        except KubeError as second:
            logger.warning("%s/%s: the status cannot be written: %s", service.namespace, service.name, second)

    async def _write_status(self, service: InferenceService, after: Object) -> None:
        if after == service.status:
            return
        meta = {"name": service.name, "namespace": service.namespace, "uid": service.uid}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": after}
        try:
            await self._client.apply(body, "status")
        except Refused as refusal:
            if refusal.code in (404, 409):  # deleted meanwhile, perhaps made anew: its own event follows
                return
            raise
        for event in transitions(service.status, after):
            await self._events.post(service, event, self._clock())
