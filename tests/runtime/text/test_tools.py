"""Reasoning and tool calls in streamed text."""

from __future__ import annotations

import json
import random
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.support import tiny_tokenizers
from tests.support.grammar_engine import assert_valid
from tests.support.tool_chats import BEGUN, CLOCK, HERMES, LLAMA, MISTRAL, TEMPLATES, THINKING, WEATHER
from thranite.text.grammar import GrammarCompiler, grammar_source
from thranite.text.tokenizer import Tokenizer
from thranite.text.tools.calls import parser_for
from thranite.text.tools.forced import forced_calls
from thranite.text.tools.output import Answer, Call, OutputFormat, OutputReader, read_answer
from thranite.text.tools.reader import Content, Piece, joined
from thranite.text.tools.reasoning import prompt_opens_reasoning, reasons

PARIS = '{"place": "Paris", "days": 2}'
READINGS: list[tuple[str, str, Answer]] = [
    ("hermes", "just text", Answer("just text")),
    ("hermes", " spaced \n", Answer(" spaced \n")),
    (
        "hermes",
        f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>\n',
        Answer("Let me see.", calls=[Call("weather", PARIS)]),
    ),
    (
        "hermes",
        '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n'
        '<tool_call>{"arguments": {"x": "}"}, "name": "b"}</tool_call>',
        Answer(calls=[Call("a", "{}"), Call("b", '{"x": "}"}')]),
    ),
    ("hermes", '<tool_call>{"name": "a", "arguments": "{\\"k\\": 1}"}', Answer(calls=[Call("a", '{"k": 1}')])),
    ("hermes", '<tool_call>{"name": "a"}</tool_call> done', Answer(" done", calls=[Call("a", "{}")])),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"k": [1, "\\"', Answer(calls=[Call("a", '{"k": [1, "\\"')])),
    ("hermes", "<tool_call>nothing</tool_call>", Answer("<tool_call>nothing</tool_call>")),
    ("hermes", '<tool_call>{"name": 3}</tool_call>', Answer('<tool_call>{"name": 3}</tool_call>')),
    ("hermes", '<tool_call>{"na', Answer('<tool_call>{"na')),
    ("hermes", "a < b <tool_cal", Answer("a < b <tool_cal")),
    ("hermes", "<tool_call>" + "{" * 2000, Answer("<tool_call>" + "{" * 2000)),
    ("llama3_json", f'{{"name": "weather", "parameters": {PARIS}}}', Answer(calls=[Call("weather", PARIS)])),
    (
        "llama3_json",
        '<|python_tag|>{"type": "function", "name": "a", "parameters": {"é": null}}; {"name": "b", "parameters": {}}',
        Answer(calls=[Call("a", '{"é": null}'), Call("b", "{}")]),
    ),
    ("llama3_json", ' {"answer": 42}\nand more', Answer(' {"answer": 42}\nand more')),
    ("llama3_json", 'Text {"name": "a", "parameters": {}}', Answer('Text {"name": "a", "parameters": {}}')),
    ("llama3_json", '{"name": "a", "parameters": {}} so', Answer("so", calls=[Call("a", "{}")])),
    ("llama3_json", '{"name": "a", "parameters": {}};', Answer(";", calls=[Call("a", "{}")])),
    ("llama3_json", '{"name": "Alice", "age": 30}', Answer('{"name": "Alice", "age": 30}')),
    ("llama3_json", '<|python_tag|>{"name": "a"}', Answer(calls=[Call("a", "{}")])),
    (
        "llama3_json",
        '{"name": "a", "parameters": {}}\n{"name": "b", "parameters": {}}, {"parameters": {"k": 1}, "name": "c"}\n',
        Answer(calls=[Call("a", "{}"), Call("b", "{}"), Call("c", '{"k": 1}')]),
    ),
    (
        "llama3_json",
        '{"name": "a", "parameters": {}} {"name": "Alice"} so',
        Answer('{"name": "Alice"} so', calls=[Call("a", "{}")]),
    ),
    ("hermes", '<tool_call>{"arguments": {"s": "\\ud83d"}, "name": "a"}', Answer(calls=[Call("a", '{"s": "\ufffd"}')])),
    (
        "mistral",
        f'[TOOL_CALLS]{{"name": "weather", "arguments": {PARIS}}}, {{"name": "b", "arguments": {{}}}}',
        Answer(calls=[Call("weather", PARIS), Call("b", "{}")]),
    ),
    ("mistral", '[TOOL_CALLS] {"nothing": 1}', Answer('[TOOL_CALLS]{"nothing": 1}')),
    (
        "mistral",
        f'Sure. [TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, {{"name": "b", "arguments": {{}}}}]',
        Answer("Sure.", calls=[Call("weather", PARIS), Call("b", "{}")]),
    ),
    (
        "mistral",
        f"[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]b[CALL_ID]x1[ARGS]{{}}",
        Answer(calls=[Call("weather", PARIS), Call("b", "{}")]),
    ),
    ("mistral", "[TOOL_CALLS]weather", Answer("[TOOL_CALLS]weather")),
    ("mistral", "[TOOL_CALLS][nothing]", Answer("[TOOL_CALLS][nothing]")),
]  # fmt: skip


@pytest.mark.parametrize(("notation", "text", "answer"), READINGS, ids=lambda value: str(value)[:40])
def test_calls_are_found_and_all_else_is_content(notation: str, text: str, answer: Answer) -> None:
    assert read_answer(text, OutputFormat(notation)) == answer


@pytest.mark.parametrize(
    ("text", "inside", "answer"),
    [
        ("<think>\nhm\n\nso\n</think>\n\nYes.\n", False, Answer("Yes.\n", "hm\n\nso")),
        ("hm </think> Yes", True, Answer("Yes", "hm")),
        ("never ends", True, Answer(reasoning="never ends")),
        ("<think></think>Yes", False, Answer("Yes")),
        (" no <think>thought</think>", False, Answer(" no <think>thought</think>")),
        ("<thin", False, Answer("<thin")),
        ("\n", False, Answer("\n")),
        ("<think>a </thin b</think>", False, Answer("", "a </thin b")),
    ],
)
def test_reasoning_is_split_off(text: str, inside: bool, answer: Answer) -> None:
    assert read_answer(text, OutputFormat(None, True, inside)) == answer


def test_long_answers_are_read_whole() -> None:
    answer = read_answer("<think>" + "a" * 20_000 + "</think>" + "b" * 20_000, OutputFormat("hermes", True))
    assert (len(answer.reasoning), len(answer.content)) == (20_000, 20_000)


def test_pieces_are_joined_in_a_time_that_grows_as_they_do() -> None:
    """Of 30 MB: 0.02 s, or over 5 s where every piece copies those before it."""
    pieces: list[Piece] = [Content("a" * 10_000)] * 3_000
    used = time.thread_time()
    answer = joined(pieces)
    assert time.thread_time() - used < 1
    assert answer == [Content("a" * 30_000_000)]


def test_calls_are_not_looked_for_among_thoughts() -> None:
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    answer = read_answer(f"<think>{call}</think>{call}", OutputFormat("hermes", True))
    assert answer == Answer("", call, [Call("a", "{}")])


def test_calls_beyond_the_most_are_dropped() -> None:
    call = '<tool_call>{"name": "%s", "arguments": {}}</tool_call>'
    answer = read_answer(call % "a" + call % "b", OutputFormat("hermes", max_calls=1))
    assert answer == Answer(calls=[Call("a", "{}")])


FRAGMENTS = st.sampled_from([
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[", "]", "{",
    "}",
    '"', "\\", ":", ", ", ";", " ", "\n", "text", "é", '{"name": "f", "arguments": {', '"name": "f"', '"parameters": ',
    '{"name": "f", "parameters": {"a": [1, {"b": "}"}]}}', "<", "</", "<tool", "null", "3",
])  # fmt: skip


@hypothesis_settings(max_examples=400, deadline=None)
@given(
    st.lists(FRAGMENTS, max_size=14).map("".join),
    st.lists(st.integers(0, 120), max_size=10),
    st.sampled_from(["hermes", "llama3_json", "mistral", None]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_the_answer_does_not_depend_on_how_text_was_cut(
    text: str, cuts: list[int], tools: str | None, reasoning: bool, inside: bool, most: int | None
) -> None:
    wanted = OutputFormat(tools, reasoning, inside, most)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(places)]
    reader, answer = OutputReader(wanted), Answer()
    for part in parts:
        answer.add(reader.feed(part))
    answer.add(reader.finish())
    assert answer == read_answer(text, wanted)
    if wanted.plain:
        assert answer == Answer(text)


@given(st.text("ab <{[\n}]>", max_size=40))
def test_text_without_calls_stays_as_it_is(text: str) -> None:
    for notation in TEMPLATES:
        assert read_answer(text, OutputFormat(notation)) == Answer(text)


def test_arguments_stream_as_they_come() -> None:
    reader, seen = OutputReader(OutputFormat("hermes")), Answer()
    for character in '<tool_call>{"name": "f", "arguments": {"code": "abc':
        seen.add(reader.feed(character))
    assert seen == Answer(calls=[Call("f", '{"code": "abc')])


def test_templates_tell_the_notation() -> None:
    assert {name: parser_for(source) for name, source in TEMPLATES.items()} == {name: name for name in TEMPLATES}
    assert parser_for(tiny_tokenizers.CHATML) is None
    assert [reasons(source) for source in (HERMES, THINKING, BEGUN)] == [False, True, True]
    assert prompt_opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not prompt_opens_reasoning("<think>\n\n</think>\n\n")


def tokenizer_of(template: str, special: tuple[str, ...]) -> Tokenizer:
    rust = tiny_tokenizers.byte_level()
    rust.add_special_tokens([AddedToken(text, special=True) for text in special])
    return Tokenizer(rust, tiny_tokenizers.SPECIAL_TOKENS, {"default": template})


FORCED = [
    ("hermes", HERMES, ()),
    ("hermes", HERMES, ("<tool_call>", "</tool_call>")),
    ("llama3_json", LLAMA, ()),
    ("mistral", MISTRAL, ("[TOOL_CALLS]",)),
    ("mistral", MISTRAL, ()),
    ("mistral", MISTRAL + "{# [ARGS] #}", ("[TOOL_CALLS]", "[ARGS]")),
]


@pytest.mark.parametrize(("notation", "template", "special"), FORCED)
@pytest.mark.parametrize("several", [False, True])
def test_forced_calls_are_read_back(notation: str, template: str, special: tuple[str, ...], several: bool) -> None:
    """Random texts of the grammar: each is calls of the functions, with arguments that keep to their schema."""
    tokenizer = tokenizer_of(template, special)
    grammar = grammar_source(forced_calls(notation, [WEATHER, CLOCK], tokenizer, several=several))
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_token_id or 0])
    schemas = {function["name"]: function["parameters"] for function in (WEATHER, CLOCK)}
    counts, names = set(), set()
    for seed in range(12):
        text = random_text(compiler, grammar, tokenizer, seed)
        answer = read_answer(text, OutputFormat(notation))
        assert answer.content == ""
        for call in answer.calls:
            assert_valid(call.arguments, schemas[call.name])
            names.add(call.name)
        counts.add(len(answer.calls))
    assert names == {"weather", "clock"}
    assert (counts == {1}) is not several


def random_text(compiler: GrammarCompiler, grammar: str, tokenizer: Tokenizer, seed: int) -> str:
    """Tokens drawn from those allowed, white space left out (it may come without end)."""
    draw = random.Random(seed)
    matcher, tokens = compiler.matcher(grammar), list[int]()
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [t for t in range(tokenizer.vocab_size) if mask[t >> 3] >> (t & 7) & 1]
        dense = [t for t in allowed if not re.fullmatch(rb"\s+", tokenizer.token_bytes(t))] or allowed
        token = draw.choice(allowed if tokenizer.eos_token_id in allowed else dense)
        if token == tokenizer.eos_token_id:
            break
        assert matcher.consume_token(token)
        tokens.append(token)
    return tokenizer.decode(tokens, skip_special_tokens=False)


def test_names_with_quotes_are_forced_too() -> None:
    tokenizer = tokenizer_of(HERMES, ())
    odd = {"name": 'a"b', "parameters": {"type": "object", "properties": {"x": {"const": "\n"}}, "required": ["x"],
                                         "additionalProperties": False}}  # fmt: skip
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_token_id or 0])
    text = random_text(compiler, grammar_source(forced_calls("hermes", [odd], tokenizer, several=False)), tokenizer, 0)
    [call] = read_answer(text, OutputFormat("hermes")).calls
    assert (call.name, json.loads(call.arguments)) == ('a"b', {"x": "\n"})
