"""A step is whole or the engine's last: like a mutex, an engine is poisoned by an exception that leaves it half-way.

Planning hands out pages and indexes them for reuse before the device writes them, and the device is told a step in
parts. Where that stops in between, scheduler, pages and device may disagree, and what followed could be wrong unseen.
"""

from __future__ import annotations

from types import TracebackType

from thranite.errors import EngineDead

CANNOT_GO_ON = "the engine cannot go on: close it and make another"


class StepGuard:
    """Entered for each step, and to sleep."""

    def __init__(self) -> None:
        self.inside = False  # for ever, once a step was left half-way
        self._what = ""
        self._cause: BaseException | None = None

    def check(self) -> None:
        """Raises EngineDead, which repeats what left a step half-way."""
        if self._what:
            raise EngineDead(f"{CANNOT_GO_ON}; a step was left half-way by {self._what}") from self._cause

    def forget_cause(self) -> None:
        """Its traceback holds what frames held that it left, memory of the device included."""
        self._cause = None

    def __enter__(self) -> None:
        self.check()
        if self.inside:  # called by a step, or after one whose end another interrupt left
            raise EngineDead(f"{CANNOT_GO_ON}; a step has not ended")
        self.inside = True

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._cause = error
        if error is not None:
            name, text = type(error).__name__, str(error)
            self._what = f"{name}: {text}" if text else name
        self.inside = error is not None
