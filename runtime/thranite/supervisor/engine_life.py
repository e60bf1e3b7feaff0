"""What one engine process has said of itself, and whether it hangs. Pure: time is passed in."""

from __future__ import annotations

from thranite.ipc import control
from thranite.ipc.control import ModelPhase
from thranite.supervisor.sleep import Sleeper
from thranite.supervisor.stall import StallWatch


class EngineLife:
    """From its start to its end; another process of the same model has another one.

    `stage` and `progress` tell how far its loading is; `failure` is the last word of one that ends.
    """

    def __init__(self, stall_timeout: float | None) -> None:
        self.ready = False
        self.stage: str | None = None
        self.progress: float | None = None
        self.failure: control.StartupFailed | control.ChildFatal | None = None
        self.sleeper = Sleeper()
        self._stall_timeout = stall_timeout
        self._stall: StallWatch | None = None  # loading is exempt
        self._behind: str | None = None  # the rank for which the engine waits

    def take(self, message: control.FromChild, now: float) -> None:
        match message:
            case control.Heartbeat(_, busy_seconds, allowed_seconds, behind, in_step):
                self._behind = behind
                if self._stall is not None:
                    self._stall.heartbeat(busy_seconds, allowed_seconds, in_step)
            case control.EngineReady():
                self.ready = True
                self._stall = StallWatch(self._stall_timeout, now)
            case control.Slept():
                self.sleeper.take(message)
            case control.StageProgress(stage, fraction, _, done):
                self.stage, self.progress = stage, 1.0 if done else fraction
            case control.StartupFailed() | control.ChildFatal():
                self.failure = self.failure or message

    @property
    def phase(self) -> ModelPhase:
        """Of its model, as far as it is this engine's: loading, ready or some kind of asleep."""
        return self.sleeper.status.phase if self.ready else ModelPhase.LOADING

    def advance(self, now: float) -> None:
        if self._stall is not None:
            self._stall.advance(now)

    def hang(self) -> str | None:
        """Why it hangs, and which rank it waits for; None while it does not hang."""
        verdict = None if self._stall is None else self._stall.verdict()
        if verdict is None:
            return None
        return f"the engine hangs: {verdict}" + (f"; {self._behind}" if self._behind else "")

    def cause(self, how: str) -> str:
        """Why it ended. `how`: what its return code says."""
        match self.failure:
            case control.StartupFailed(stage, error, message, hint):
                return f"{stage}: {error}: {message}" + (f" (hint: {hint})" if hint else "")
            case control.ChildFatal(cause):
                return f"{how}: {cause}"
        return how
