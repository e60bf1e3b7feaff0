"""How a starting engine tells where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by `build_engine` from one thread."""

    def stage(self, name: str) -> None:
        """A stage begins (resolve, plan, load, warm-up); the one before it ended."""

    def advance(self, done: int, total: int) -> None:
        """The present stage's progress, in bytes or items."""

    def note(self, text: str) -> None:
        """Something the user should read once: the memory plan."""


class NoProgress:
    """Says nothing: for `LLM` in notebooks and tests."""

    def stage(self, name: str) -> None:
        return

    def advance(self, done: int, total: int) -> None:
        return

    def note(self, text: str) -> None:
        return
