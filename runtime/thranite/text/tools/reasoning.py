"""Reasoning apart from the answer: what stands between <think> and </think> at the beginning of the text."""

from __future__ import annotations

from thranite.text.tools.reader import Content, Reader, Reading, Reasoning

OPEN, CLOSE = "<think>", "</think>"


class ReasoningReader(Reader):
    """`inside`: the prompt ended with <think>, as some templates do. White space around the tags belongs to neither."""

    def __init__(self, inside: bool) -> None:
        self._inside = inside
        super().__init__()

    def _run(self) -> Reading[None]:
        space = yield from self._skip_space()
        if self._inside or (yield from self._follows(OPEN)):
            yield from self._skip_space()
            yield from self._reason()
            space = ""
            yield from self._skip_space()
        if space:
            self._give(Content(space))
        while (character := (yield from self._next())) is not None:
            self._give(Content(character))

    def _reason(self) -> Reading[None]:
        """Up to the closing tag or the end."""
        while True:
            space = yield from self._skip_space()
            if (yield from self._follows(CLOSE)):
                return
            character = yield from self._next()
            if character is None:
                return
            self._give(Reasoning(space + character))


def reasons(template: str) -> bool:
    """Whether a chat template is of a model that thinks aloud."""
    return CLOSE in template


def prompt_opens_reasoning(prompt: str) -> bool:
    return prompt.rstrip().endswith(OPEN)
