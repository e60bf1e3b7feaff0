"""The admin port's form of sleep: it answers once a change is done, and says why one could not be."""

from __future__ import annotations

from tests.runtime.server.test_admin import Target
from tests.support.asgi_calls import AppCalls
from thranite.ipc.control import ModelPhase
from thranite.server.admin import build_admin_app
from thranite.server.admin_sleep import sleep_routes
from thranite.server.metrics_source import MetricsSource
from thranite.supervisor.sleep import SleepStatus


class Sleeping(Target):
    """Goes through `phases`, one a question."""

    def __init__(self, *phases: SleepStatus) -> None:
        super().__init__()
        self._phases = list(phases)

    def start_sleep(self, name: str | None, seconds: float | None) -> SleepStatus:
        self.asked.append((name, seconds))
        return self._phases.pop(0)

    def start_wake(self, name: str | None) -> SleepStatus:
        self.asked.append(name)
        return self._phases.pop(0)

    def sleep_status(self, name: str | None) -> SleepStatus:
        return self._phases.pop(0)


def calls(target: Sleeping) -> AppCalls:
    return AppCalls(build_admin_app(target, MetricsSource("m"), None, sleep_routes(target)))


FALLING, WAKING = SleepStatus(ModelPhase.FALLING_ASLEEP), SleepStatus(ModelPhase.WAKING)


def test_the_answer_waits_until_it_is_done() -> None:
    target = Sleeping(FALLING, FALLING, SleepStatus(ModelPhase.ASLEEP, 5, 0.5))
    answer = calls(target).post("/sleep?deadline_seconds=2.5", json={"model": "m", "level": 1})
    assert answer.json() == {"phase": "asleep", "freed_bytes": 5, "sleep_seconds": 0.5, "wake_seconds": None}
    assert target.asked == [("m", 2.5)]
    target = Sleeping(WAKING, SleepStatus(ModelPhase.READY, 5, 0.5, 1.5))
    assert calls(target).post("/wake_up").json()["wake_seconds"] == 1.5
    assert target.asked == [None]


def test_why_it_could_not_wake() -> None:
    target = Sleeping(WAKING, SleepStatus(ModelPhase.ASLEEP, error="the device lacks 3.0 GiB"))
    answer = calls(target).post("/wake_up")
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "the device lacks 3.0 GiB")
