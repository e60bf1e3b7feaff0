"""Request bodies that go wrong in as many ways as clients find: good ones, changed at random places."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, -(2**63), 2**63, 2**64, 10**30, 0.0, -0.5, 1e308, 1e-320, "", " ", "x",
    "\u0000", "\ud83d\ude00", "\u202e", "a" * 3000, "]]>", "<|im_end|>", "${7*7}", "{{7*7}}", "{% raw %}", "../../etc",
    [], [[]], [None], [1, "a"], {}, {"": 1}, {"a": {"b": {"c": []}}}, {"type": "text"}, {"type": "image_url"},
    {"type": "object"}, {"$ref": "#"}, {"type": "string", "pattern": "("}, [{"role": "user"}], ["a"] * 200,
)  # fmt: skip
NAMES = (
    "model", "messages", "prompt", "input", "n", "stop", "seed", "stream", "tools", "tool_choice", "logprobs", "echo",
    "top_logprobs", "temperature", "top_p", "top_k", "min_p", "logit_bias", "response_format", "guided_json", "suffix",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "priority", "timeout", "user", "metadata",
    "max_tokens", "max_completion_tokens", "min_tokens", "stop_token_ids", "allowed_token_ids", "bad_words", "system",
    "prompt_logprobs", "chat_template_kwargs", "stream_options", "cache_salt", "truncate_prompt_tokens", "thinking",
    "text", "instructions", "max_output_tokens", "stop_sequences", "encoding_format", "dimensions", "__proto__",
)  # fmt: skip
TEXTS = (b"\xff", b"\x00", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"'")


def fuzzed(good: dict[str, Any], dice: random.Random) -> bytes:
    """`good`, changed in one to four places, and one time in four broken as text as well."""
    body = copy.deepcopy(good)
    for _ in range(dice.randint(1, 4)):
        _change(body, dice)
    data = json.dumps(body, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    return _break(data, dice) if dice.random() < 0.25 else data


def _change(body: dict[str, Any], dice: random.Random) -> None:
    place: Any = body
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = dice.choice(list(keys))
        if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.4:
            break
        place = place[key]
    match dice.randrange(5):
        case 0 if isinstance(place, dict):
            place[dice.choice(NAMES)] = copy.deepcopy(dice.choice(JUNK))
        case 1 if place:
            del place[key]
        case 2 if place:
            place[key] = [place[key]] if dice.random() < 0.5 else {"a": place[key]}
        case 3 if isinstance(place, list):
            place.extend(copy.deepcopy(place))
        case _:
            if place:
                place[key] = copy.deepcopy(dice.choice(JUNK))


def _break(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    match dice.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + dice.choice(TEXTS) + data[at:]
        case 2:
            return data[:at] + data[at + 1 :]
        case _:
            return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
