"""A chat answer's text as reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from thranite.text.tools.calls import PARSERS
from thranite.text.tools.reader import CallArguments, CallBegin, Content, Piece, Reader, Reasoning, joined
from thranite.text.tools.reasoning import ReasoningReader


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How an answer is to be read. `tools`: a notation of `calls.PARSERS`; None: calls are not looked for.

    `reasoning`: whether a thought may come first; `inside`: whether the prompt has begun it. `max_calls`: those beyond
    are dropped.
    """

    tools: str | None = None
    reasoning: bool = False
    inside: bool = False
    max_calls: int | None = None

    @property
    def plain(self) -> bool:
        return self.tools is None and not self.reasoning


class OutputReader:
    """One sample's answer: text in, pieces out. The pieces, joined, do not depend on how the text was cut."""

    def __init__(self, wanted: OutputFormat) -> None:
        self._reasoning: Reader | None = ReasoningReader(wanted.inside) if wanted.reasoning else None
        self._calls: Reader | None = None if wanted.tools is None else PARSERS[wanted.tools]()
        self._max_calls = wanted.max_calls

    def feed(self, text: str) -> list[Piece]:
        pieces = [Content(text)] if self._reasoning is None else self._reasoning.feed(text)
        return self._limited(self._read_calls(pieces))

    def finish(self) -> list[Piece]:
        pieces = [] if self._reasoning is None else self._reasoning.finish()
        found = self._read_calls(pieces)
        return self._limited(found if self._calls is None else [*found, *self._calls.finish()])

    def _read_calls(self, pieces: Sequence[Piece]) -> list[Piece]:
        if self._calls is None:
            return list(pieces)
        found: list[Piece] = []
        for piece in pieces:
            found += self._calls.feed(piece.text) if isinstance(piece, Content) else [piece]
        return found

    def _limited(self, pieces: list[Piece]) -> list[Piece]:
        most = self._max_calls
        kept = [p for p in pieces if most is None or not isinstance(p, CallBegin | CallArguments) or p.index < most]
        return [piece for piece in joined(kept) if not isinstance(piece, Content | Reasoning) or piece.text]


@dataclass(slots=True)
class Call:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """Pieces put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(_, name):
                    self.calls.append(Call(name))
                case CallArguments(index, text):
                    self.calls[index].arguments += text


def read_answer(text: str, wanted: OutputFormat) -> Answer:
    answer, reader = Answer(), OutputReader(wanted)
    answer.add(reader.feed(text))
    answer.add(reader.finish())
    return answer
