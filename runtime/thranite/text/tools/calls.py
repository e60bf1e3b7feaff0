"""Tool calls in three notations. What only looks like a call stays content."""

from __future__ import annotations

import json
import re

from thranite.text.json_text import parse_json
from thranite.text.tools.reader import CallArguments, CallBegin, Content, Reader, Reading

# Where a call's arguments begin, if its keys come in the usual order: from here on they are streamed.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{', re.DOTALL)
_CALL_ID = re.compile(r"\[CALL_ID\].*", re.DOTALL)


class CallReader(Reader):
    """What the notations share."""

    def __init__(self) -> None:
        self.calls = 0
        super().__init__()

    def _until(self, tag: str) -> Reading[bool]:
        """Content up to `tag`, without the white space before it. False: the text ended first."""
        while True:
            space = yield from self._skip_space()
            if (yield from self._follows(tag)):
                return True
            character = yield from self._next()
            if character is None:
                if not self.calls:
                    self._give(Content(space))
                return False
            self._give(Content(space + character))

    def _rest(self) -> Reading[None]:
        """Content to the end."""
        space = "" if not self.calls else (yield from self._skip_space())
        while (character := (yield from self._next())) is not None:
            self._give(Content(space + character))
            space = ""

    def _call(self, lead: str, tagged: bool = True) -> Reading[bool]:
        """One object with a name and arguments, which may be left out where a tag says that it is a call. False: it is
        none; then it is content, behind `lead`."""
        scan, streaming, begun = JsonScan(), False, False
        raw = ""
        while not scan.ended:
            character = yield from self._next()
            if character is None or not scan.take(character):
                self._put_back(character or "")
                if not begun:
                    self._give(Content(lead + raw))
                return begun
            raw += character
            if character == "{" and not begun and scan.depth == 2 and (head := _HEAD.fullmatch(raw)):
                begun = streaming = self._begin(head[1])
            if streaming:
                self._give(CallArguments(self.calls - 1, character))
                streaming = scan.depth > 1
        if not begun and not self._whole(raw, tagged):
            self._give(Content(lead + raw))
            return False
        return True

    def _arguments(self, name: str) -> Reading[None]:
        """An object that holds a call's arguments alone."""
        self._open(name)
        scan = JsonScan()
        while not scan.ended:
            character = yield from self._next()
            if character is None or not scan.take(character):
                self._put_back(character or "")
                return
            self._give(CallArguments(self.calls - 1, character))

    def _begin(self, quoted_name: str) -> bool:
        try:
            name = parse_json(quoted_name, strict=False)
        except ValueError:  # a bad escape: what follows is judged as a whole
            return False
        self._open(name)
        return True

    def _open(self, name: str) -> None:
        self._give(CallBegin(self.calls, name))
        self.calls += 1

    def _whole(self, raw: str, tagged: bool) -> bool:
        """A call whose keys come in another order, or whose arguments are no object. An answer may have a name, too."""
        try:
            value = parse_json(raw, strict=False)
        except (ValueError, RecursionError):
            return False
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(name, str) or not name or not (tagged or value.keys() & {"arguments", "parameters"}):
            return False
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        self._open(name)
        self._give(CallArguments(self.calls - 1, text))
        return True


class JsonScan:
    """Finds where an object ends. Counts brackets outside strings; whether all else is JSON is not its business."""

    def __init__(self) -> None:
        self.depth = 0
        self.ended = False
        self._string = self._escaped = False

    def take(self, character: str) -> bool:
        """False if `character` cannot stand here: before the object only white space can."""
        if self.depth == 0:
            self.depth = int(character == "{")
            return character == "{" or character.isspace()
        if self._string:
            self._string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._string = True
        else:
            self.depth += (character in "{[") - (character in "}]")
            self.ended = self.depth == 0
        return True


class HermesCalls(CallReader):
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes and Qwen write it."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def _run(self) -> Reading[None]:
        while (yield from self._until(self.OPEN)):
            if (yield from self._call(self.OPEN)):
                yield from self._skip_space()
                yield from self._follows(self.CLOSE)


class LlamaCalls(CallReader):
    """{"name": …, "parameters": {…}}, alone or several with ; between, as Llama 3 writes it: nothing before it. A comma
    or white space between them will do."""

    TAG = "<|python_tag|>"

    def _run(self) -> Reading[None]:
        lead = yield from self._skip_space()
        tagged = yield from self._follows(self.TAG)
        lead += self.TAG * tagged
        while (yield from self._at_object(lead)):
            if not (yield from self._call(lead, tagged)):
                break
            yield from self._skip_space()
            lead = ""
            for separator in (";", ","):
                if not lead and (yield from self._follows(separator)):
                    lead = separator
        yield from self._rest()

    def _at_object(self, lead: str) -> Reading[bool]:
        space = yield from self._skip_space()
        character = yield from self._next()
        self._put_back(character or "")
        if character != "{":
            self._give(Content(lead + space))
        return character == "{"


class MistralCalls(CallReader):
    """[TOOL_CALLS], then a list of {"name": …, "arguments": {…}}, or a name, [ARGS] and the arguments."""

    TAG, ARGS = "[TOOL_CALLS]", "[ARGS]"

    def _run(self) -> Reading[None]:
        while (yield from self._until(self.TAG)):
            yield from self._skip_space()
            if (yield from self._follows("[")):
                yield from self._list()
            else:
                yield from self._named()

    def _list(self) -> Reading[None]:
        yield from self._objects(self.TAG + "[")

    def _objects(self, lead: str) -> Reading[None]:
        while (yield from self._call(lead)):
            yield from self._skip_space()
            if not (yield from self._follows(",")):
                yield from self._follows("]")
                return
            lead = ","

    def _named(self) -> Reading[None]:
        before = ""
        while (character := (yield from self._next())) != "{":
            if character is None:
                self._give(Content(self.TAG + before))
                return
            before += character
        self._put_back("{")
        name = _CALL_ID.sub("", before.replace(self.ARGS, "")).strip()
        if name:
            yield from self._arguments(name)
        else:  # the list's objects, without a list
            yield from self._objects(self.TAG + before)


PARSERS: dict[str, type[CallReader]] = {"hermes": HermesCalls, "llama3_json": LlamaCalls, "mistral": MistralCalls}
TAGS = {
    "hermes": (HermesCalls.OPEN, HermesCalls.CLOSE),
    "llama3_json": (LlamaCalls.TAG,),
    "mistral": (MistralCalls.TAG, MistralCalls.ARGS),
}


def parser_for(template: str) -> str | None:
    """The notation that a chat template teaches, where it is clear."""
    if HermesCalls.OPEN in template:
        return "hermes"
    if MistralCalls.TAG in template:
        return "mistral"
    if "<|start_header_id|>" in template and '"parameters"' in template:
        return "llama3_json"
    return None
