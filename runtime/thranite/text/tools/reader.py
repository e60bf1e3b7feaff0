"""Parsers of streamed text that see one character at a time, so that no result can depend on how text was cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, str | None, T]  # receives characters, then None; returns T


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The `index`-th tool call of the answer begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments' JSON text of call `index`, as the model spelt it."""

    index: int
    text: str


Piece = Content | Reasoning | CallBegin | CallArguments


class Reader(ABC):
    """Feeds text to `_run`, a coroutine that takes characters by `_next` and gives pieces by `_give`."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._pushed: list[str] = []  # characters put back, the next one last
        self._ended = False
        self._running = self._run()
        next(self._running)

    @abstractmethod
    def _run(self) -> Reading[None]:
        """Read to the end of the text."""

    def feed(self, text: str) -> list[Piece]:
        for character in text:
            self._running.send(character)
        return self._take()

    def finish(self) -> list[Piece]:
        """The rest, once no more text comes."""
        self._ended = True
        try:
            self._running.send(None)
        except StopIteration:
            return self._take()
        raise RuntimeError("a reader goes on after the end of its text")

    def _take(self) -> list[Piece]:
        pieces, self._pieces = joined(self._pieces), []
        return pieces

    # --- for _run

    def _give(self, piece: Piece) -> None:
        self._pieces.append(piece)

    def _next(self) -> Reading[str | None]:
        """The next character; None for ever at the end."""
        if self._pushed:
            return self._pushed.pop()
        if self._ended:
            return None
        return (yield)

    def _put_back(self, text: str) -> None:
        self._pushed.extend(reversed(text))

    def _skip_space(self) -> Reading[str]:
        """Take white space; what it was."""
        space = ""
        while (character := (yield from self._next())) is not None:
            if not character.isspace():
                self._put_back(character)
                break
            space += character
        return space

    def _follows(self, tag: str) -> Reading[bool]:
        """Whether the text goes on with `tag`, which is then taken."""
        seen = ""
        while len(seen) < len(tag):
            character = yield from self._next()
            if character is None:
                break
            seen += character
            if not tag.startswith(seen):
                break
        if seen == tag:
            return True
        self._put_back(seen)
        return False


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    result: list[Piece] = []
    for _, neighbours in groupby(pieces, key=lambda piece: (type(piece), getattr(piece, "index", None))):
        run = list(neighbours)
        texts = "".join(piece.text for piece in run if not isinstance(piece, CallBegin))
        match run[0]:
            case CallBegin():
                result += run
            case CallArguments(index):
                result.append(CallArguments(index, texts))
            case piece:
                result.append(type(piece)(texts))
    return result
