"""The two that never decide."""

from __future__ import annotations

from autoscaling.plant import View


class NeverScale:
    name = "never scale"
    interval = 60.0

    def decide(self, view: View) -> int:
        return view.current


class AlwaysMax:
    """Asks for the maximum a second into the run."""

    name = "always max"

    def __init__(self, replicas: int) -> None:
        self._replicas, self.interval = replicas, 1.0

    def decide(self, view: View) -> int:
        self.interval = 60.0
        return self._replicas
