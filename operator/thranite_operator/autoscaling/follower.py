"""What the autoscaler keeps of one InferenceService from round to round."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from thranite_operator.autoscaling import report, schedules
from thranite_operator.autoscaling.conditions import of_decision
from thranite_operator.autoscaling.decision import Decision, decide
from thranite_operator.autoscaling.history import History
from thranite_operator.autoscaling.report import Report
from thranite_operator.autoscaling.sample import Phase, PodSample
from thranite_operator.autoscaling.scraper import Scraped, Target
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.trace import Moment
from thranite_operator.pods import Pod, parse_time
from thranite_operator.spec import InferenceService

JOURNAL_KEPT = 100
MOMENTS_KEPT = 480  # two hours of rounds by default
LOST_SECONDS = 60.0  # after its grace period: a pod that is still there then is on a node that does not answer
SAMPLES_KEPT = 5000  # of pods, in all moments of one service together


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A decision that differs from the one before in its size or its reason. `failure`: why it could not be written."""

    time: float
    current: int
    desired: int
    recommended: int
    reason: str
    message: str
    failure: str | None = None


class Follower:
    """`report`: for the status. `last`: the last decision, whether it changed something or not. `journal` and
    `moments`: the past, oldest first, for `thranite-operator explain`; they hold `samples_kept` samples of pods at
    most, or one moment."""

    def __init__(self, service: InferenceService, spec: AutoscalingSpec, now: float) -> None:
        self.report: Report = report.restored(service.status)
        self.last: Decision | None = None
        self.journal: deque[Entry] = deque(maxlen=JOURNAL_KEPT)
        self.moments: deque[Moment] = deque()
        self.samples_kept = SAMPLES_KEPT
        self.history = History()
        self.service, self.spec = service, spec
        self.pods: tuple[Pod, ...] = ()
        self._failed: frozenset[str] = frozenset()  # uids of pods whose last scrape did
        self._state = report.restored_state(self.report.section, service.spec.replicas, now)

    def observe(self, service: InferenceService, spec: AutoscalingSpec, pods: Sequence[Pod]) -> None:
        """What the reconciler has read last."""
        self.service, self.spec = service, spec
        self.pods = tuple(pod for pod in pods if pod.phase not in ("Failed", "Succeeded"))
        self.history.keep({pod.uid for pod in self.pods})

    @property
    def current(self) -> int:
        return self.service.spec.replicas

    def targets(self) -> list[Target]:
        ready = ((pod.uid, pod.address) for pod in self.pods if phase(pod) == "Ready")
        return [Target(uid, address, uid in self._failed) for uid, address in ready if address]

    def ages(self, clock: float) -> list[float]:
        """Seconds since the last answer of each ready pod that has ever answered."""
        found = (self.history.age(target.uid, clock) for target in self.targets())
        return [age for age in found if age is not None]

    def remember(self, answers: Sequence[Scraped]) -> None:
        self._failed = frozenset(answer.uid for answer in answers if answer.reading is None)
        for answer in answers:
            if answer.reading is not None:
                self.history.add(answer.uid, answer.reading, answer.time)

    def decide(self, now: float, clock: float) -> Decision:
        """`now`: seconds since the epoch; `clock`: the scraper's."""
        pods = tuple(self._sample(pod, clock) for pod in self.pods if not _is_lost(pod, now))
        state = replace(self._state, start_seconds=self.service.status.get("expectedStartSeconds"))
        decision = decide(self.spec, state, pods, self.current, now)
        self._keep(
            Moment(
                time=now,
                current=self.current,
                pods=pods,
                start_seconds=state.start_seconds,
                desired=decision.desired,
            )
        )
        return decision

    def settle(self, decision: Decision, failure: str | None, now: float) -> bool:
        """The decision is carried out, or with a `failure` it is not: then the next one is made as if it had not been.
        Whether the status has something new to say."""
        if failure is None:
            self._state = decision.state
        self._note(decision, failure, now)
        self.last = decision
        problem = next(filter(None, map(schedules.problem, self.spec.schedules)), None)
        found = of_decision(decision, failure, problem)
        before = self.report
        self.report = report.successor(before, decision, self.current, found, now, written=failure is None)
        return self.report is not before

    def _note(self, decision: Decision, failure: str | None, now: float) -> None:
        entry = Entry(
            time=now,
            current=self.current,
            desired=decision.desired,
            recommended=decision.recommended,
            reason=str(decision.reason),
            message=decision.message,
            failure=failure,
        )
        last = self.journal[-1] if self.journal else None
        same = last is not None and (last.reason, last.failure) == (entry.reason, entry.failure)
        if not same or entry.desired != entry.current:
            self.journal.append(entry)

    def _keep(self, moment: Moment) -> None:
        self.moments.append(moment)
        while len(self.moments) > MOMENTS_KEPT or sum(len(item.pods) for item in self.moments) > self.samples_kept:
            if len(self.moments) == 1:
                return
            self.moments.popleft()

    def _sample(self, pod: Pod, clock: float) -> PodSample:
        kind = phase(pod)
        load = self.history.load(pod.uid, clock, self.spec.interval_seconds) if kind == "Ready" else None
        return PodSample(uid=pod.uid, phase=kind, load=load)


def _is_lost(pod: Pod, now: float) -> bool:
    """It ends when its node comes back or is deleted, which may be never; nothing can wait for it."""
    return pod.end_due is not None and now > parse_time(pod.end_due).timestamp() + LOST_SECONDS


def phase(pod: Pod) -> Phase:
    if pod.deleting:
        return "Draining"
    if pod.ready:
        return "Ready"
    return "Unschedulable" if pod.unscheduled is not None else "Pending"
