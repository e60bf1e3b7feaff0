"""The operator's own decision, fed as its scraper feeds it."""

from __future__ import annotations

from dataclasses import replace

from autoscaling.plant import PodView, View
from autoscaling.replica import Scrape

from thranite_operator.autoscaling.decision import Decision, decide
from thranite_operator.autoscaling.exposition import Reading
from thranite_operator.autoscaling.history import History
from thranite_operator.autoscaling.sample import PodSample
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.state import AutoscalerState
from thranite_operator.autoscaling.trace import Moment
from thranite_operator.start_time import WEIGHT


class Ours:
    """Begins with nothing learned. `moments`: what the operator would have recorded."""

    name = "thranite"

    def __init__(self, spec: AutoscalingSpec) -> None:
        self.interval, self._spec, self._state = float(spec.interval_seconds), spec, AutoscalerState()
        self._history = History()
        self._started: set[str] = set()
        self.moments: list[Moment] = []
        self.last: Decision | None = None

    def decide(self, view: View) -> int:
        self._learn_start(view)
        self._history.keep([pod.uid for pod in view.pods])
        pods = tuple(self._sample(pod, view.now) for pod in view.pods)
        self.last = decide(self._spec, self._state, pods, view.current, view.now)
        start = self._state.start_seconds
        self._state = self.last.state
        self.moments.append(
            Moment(time=view.now, current=view.current, pods=pods, start_seconds=start, desired=self.last.desired)
        )
        return self.last.desired

    def _learn_start(self, view: View) -> None:
        for pod in view.pods:
            if pod.start_seconds and pod.uid not in self._started:
                self._started.add(pod.uid)
                known = self._state.start_seconds
                start = pod.start_seconds if known is None else known + WEIGHT * (pod.start_seconds - known)
                self._state = replace(self._state, start_seconds=float(round(start)))

    def _sample(self, pod: PodView, now: float) -> PodSample:
        if pod.scrape is not None:
            self._history.add(pod.uid, reading(pod.scrape), now)
        return PodSample(uid=pod.uid, phase=pod.phase, load=self._history.load(pod.uid, now, self.interval))


def reading(scrape: Scrape) -> Reading:
    return Reading(
        waiting=scrape.requests_waiting,
        running=scrape.requests_running,
        kv_cache_usage=scrape.kv_cache_usage_ratio,
        received=scrape.requests_received_total,
        finished=scrape.requests_finished_total,
        rejected=scrape.requests_rejected_total,
    )
