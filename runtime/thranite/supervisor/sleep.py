"""Whether one engine sleeps, and what it is told: pure decisions on wishes, its answers and time.

awake ── falling asleep: new requests are refused, open ones end, at the latest at the deadline ── asleep
  └────────────────────────────────── waking ──────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thranite.errors import Rejected
from thranite.ipc import control
from thranite.ipc.control import ModelPhase

CUT_OFF = "the model is put to sleep and this request did not finish in time"


@dataclass(frozen=True, slots=True)
class SleepStatus:
    """`phase`: READY is awake. Bytes and seconds: of the last sleep and the last waking. `error`: why it sleeps on."""

    phase: ModelPhase
    freed_bytes: int | None = None
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    error: str | None = None

    @property
    def settled(self) -> bool:
        return self.phase not in (ModelPhase.FALLING_ASLEEP, ModelPhase.WAKING)


class Sleeper:
    """One engine's."""

    def __init__(self) -> None:
        self.status = SleepStatus(ModelPhase.READY)
        self._deadline = float("inf")
        self._told = False  # what the engine was told last: whether to sleep
        self._cut = False

    @property
    def awake(self) -> bool:
        return self.status.phase is ModelPhase.READY

    def sleep(self, now: float, seconds: float) -> None:
        """`seconds`: for open requests to end. Asked again, the earlier deadline counts. Raises Rejected."""
        if self.status.phase is ModelPhase.WAKING:
            raise Rejected("the model is waking: ask again once it is awake", "waking")
        if self.status.phase is ModelPhase.ASLEEP:
            self.status = replace(self.status, error=None)  # of a waking: that it sleeps on is what is wished now
            return
        falls_already = self.status.phase is ModelPhase.FALLING_ASLEEP
        self._deadline = min(self._deadline, now + seconds) if falls_already else now + seconds
        if not falls_already:
            self._cut = False
            self.status = SleepStatus(ModelPhase.FALLING_ASLEEP)

    def wake(self) -> None:
        """Also one that has not fallen asleep yet. One that was not told to: its engine has nothing to answer."""
        status = self.status
        if status.phase is ModelPhase.FALLING_ASLEEP and not self._told:
            self.status = replace(status, phase=ModelPhase.READY)
        elif status.phase in (ModelPhase.ASLEEP, ModelPhase.FALLING_ASLEEP):
            self.status = replace(status, phase=ModelPhase.WAKING, wake_seconds=None, error=None)

    def take(self, answer: control.Slept) -> None:
        """What the engine has done. One that falls asleep although it is to wake by now has yet to hear of that."""
        status = self.status
        if not answer.asleep:
            if status.phase is ModelPhase.WAKING:
                self.status = replace(status, phase=ModelPhase.READY, wake_seconds=answer.seconds)
        elif answer.error is not None:
            self._told = True
            self.status = replace(status, phase=ModelPhase.ASLEEP, error=answer.error)
        else:
            phase = ModelPhase.WAKING if status.phase is ModelPhase.WAKING else ModelPhase.ASLEEP
            self.status = replace(status, phase=phase, freed_bytes=answer.freed_bytes, sleep_seconds=answer.seconds)

    def advance(self, now: float) -> tuple[list[control.Sleep], bool]:
        """What the engine is to be told, and whether requests that are still open are to be cut off now."""
        wanted = self.status.phase in (ModelPhase.FALLING_ASLEEP, ModelPhase.ASLEEP)
        orders = [] if wanted == self._told else [control.Sleep(wanted)]
        self._told = wanted
        cut = self.status.phase is ModelPhase.FALLING_ASLEEP and now >= self._deadline and not self._cut
        self._cut = self._cut or cut
        return orders, cut
