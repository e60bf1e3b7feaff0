"""Structured output through the real engine: whatever the logits, what ends by itself parses and validates."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.grammar_engine import (
    DIRECTORY,
    EOS_ID,
    INFO,
    SCHEMAS,
    TOKENIZER,
    VOCAB,
    asks,
    assert_all_valid,
    assert_valid,
    grammar_engine,
    run,
)
from thranite.engine.constraints import BadWords, Both
from thranite.engine.grammar import Grammars
from thranite.errors import InvalidRequest, Rejected
from thranite.request import EngineRequest, FinishReason, Grammar
from thranite.sampling_params import SamplingParams, StructuredOutputsParams, TokenParams
from thranite.text.prompt import build_request
from thranite.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/boss"}]},
    },
    "required": ["name", "age", "boss"],
    "additionalProperties": False,
    "$defs": {
        "boss": {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1, "maximum": 9}},
                 "required": ["id"], "additionalProperties": False},
    },
}  # fmt: skip
WRITTEN: list[Any] = [
    PERSON,
    True,
    {"const": {"a": [1, "é\n\"", None]}},
    {"enum": ["", "x", 3, {"k": []}]},
    {"type": ["integer", "null"], "minimum": -5, "maximum": 5},
    {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 30},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "items": False, "minItems": 2},
    {"type": "object", "patternProperties": {"^x_[a-c]$": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 3}},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
               {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 7, "maximum": 9}]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "properties": {"leaf": {"type": "boolean"}, "next": {"$ref": "#/$defs/tree"}},
        "required": ["leaf"], "additionalProperties": False}}},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "email"},
    {"type": "string", "pattern": "^(foo|bar)-[0-9]{1,3}$"},
]  # fmt: skip


def test_schemas_written_by_hand() -> None:
    assert_all_valid(WRITTEN * 4, least_finished=0.75)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(SCHEMAS, min_size=16, max_size=16))
def test_random_schemas(schemas: list[Any]) -> None:
    assert_all_valid(schemas)


def test_json_objects_regexes_choices_and_grammars() -> None:
    gbnf = 'root ::= "<" [0-9]+ ">" | "none"'
    wanted = [
        asks(1, json_object=True),
        asks(2, regex=r"[A-Z]{2}-\d{1,3}"),
        asks(3, choice=["yes", "no", 'a "quoted" \\ one', "日本"]),
        asks(4, grammar=gbnf),
        asks(5, grammar='start: "(" start? ")"'),
    ]
    texts = [text for [(text, _)] in run(grammar_engine(), *[replace(params, max_tokens=900) for params in wanted])]
    assert texts[0].startswith("{")
    assert re.fullmatch(r"[A-Z]{2}-\d{1,3}", texts[1])
    assert texts[2] in ("yes", "no", 'a "quoted" \\ one', "日本")
    assert re.fullmatch(r"<[0-9]+>|none", texts[3])
    assert texts[4] == "(" * (len(texts[4]) // 2) + ")" * (len(texts[4]) // 2)


def test_many_texts_and_many_properties() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(1000)}}
    texts = [f"c{i}" for i in range(3000)]
    wanted = [replace(asks(1, choice=texts), max_tokens=40), replace(asks(2, json=schema), max_tokens=40)]
    [(text, _)], [(_, last)] = run(grammar_engine(), *wanted)
    assert text in texts
    assert last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), last.error


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batch", [5, 64])
def test_tokens_depend_neither_on_neighbours_nor_on_chunks(overlap: bool, batch: int) -> None:
    """Samples of n, plain rows between constrained ones, preemption: each row has the tokens it has alone."""
    person = replace(asks(7, json=PERSON), n=3)
    plain = SamplingParams(max_tokens=70, seed=3, ignore_eos=True)
    choice = asks(9, choice=["left", "right"])
    alone = [run(grammar_engine(), params)[0] for params in (person, plain, choice)]
    small = grammar_engine(
        overlap=overlap, max_num_batched_tokens=batch, num_blocks=32, max_model_len=110, max_num_seqs=5
    )
    together = run(small, person, plain, choice)
    assert [[text for text, _ in request] for request in together] == [[text for text, _ in r] for r in alone]
    assert small.stats().preemptions_total > 0
    for text, last in together[0]:
        assert last.finish_reason is FinishReason.STOP
        assert_valid(text, PERSON)
    assert len({text for text, _ in together[0]}) == 3


def test_the_end_of_text() -> None:
    """EOS comes as the last token, exactly where the grammar ends, also where the request ignores it."""
    word = asks(1, choice=["ab"])
    for params in (word, replace(word, ignore_eos=True), replace(word, min_tokens=20, max_tokens=30)):
        [[(text, last)]] = run(grammar_engine(), params)
        assert (text, last.finish_reason, last.token_ids) == ("ab", FinishReason.STOP, (EOS_ID,))


@pytest.mark.parametrize("field", [{"min_tokens": 25}, {"ignore_eos": True}])
def test_text_that_can_go_on_does(field: dict[str, Any]) -> None:
    letters = replace(asks(2, regex="a*"), max_tokens=40)
    lengths = [len(run(grammar_engine(), replace(letters, seed=seed))[0][0][0]) for seed in range(8)]
    longer = [len(run(grammar_engine(), replace(letters, seed=seed, **field))[0][0][0]) for seed in range(8)]
    assert min(lengths) < 25
    assert min(longer) >= (25 if "min_tokens" in field else 40)


def test_a_request_whose_parameters_leave_nothing_ends_with_an_error() -> None:
    [[(text, last)]] = run(grammar_engine(), replace(asks(choice=["yes"]), allowed_token_ids=[0, 1]))
    assert (text, last.finish_reason) == ("", FinishReason.ERROR)
    assert "fits its grammar" in str(last.error)


def test_bad_words_hold_beside_a_grammar() -> None:
    words = replace(asks(0, choice=["abc", "abd"]), bad_words=["abc"])
    assert {run(grammar_engine(), replace(words, seed=seed))[0][0][0] for seed in range(10)} == {"abd"}


def test_masks_of_both_kinds_meet() -> None:
    plain = BadWords([(1, 2)], 40, [1])
    other = BadWords([(1, 3)], 40, [1])
    mask = Both(plain, other).bitmask()
    assert mask is not None
    assert [token for token in range(40) if not mask[token >> 3] >> (token & 7) & 1] == [2, 3]
    assert Both(plain, BadWords([(5, 3)], 40, [1])).bitmask() == plain.bitmask()
    assert Both(BadWords([(5, 3)], 40, [1]), BadWords([(5, 3)], 40, [1])).bitmask() is None


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"json": {"type": "nonsense"}}, "nonsense"),
        ({"json": {"not": {}}}, "not"),
        ({"json": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"json": "{"}, "EOF"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "Unsatisfiable"),
        ({"regex": "a("}, "unclosed"),
        ({"grammar": "start: nothing_here"}, "nothing_here"),
        ({"grammar": "root ::= ("}, "GBNF"),
        ({"json": {"const": "a" * 2**20}}, "characters"),
    ],
)
def test_what_cannot_compile_is_refused_with_the_reason(wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        build_request("r", [1], asks(**wanted), INFO, TOKENIZER, seed=0)
    assert refused.value.param == "structured_outputs"


def chained(name: str, last: str) -> str:
    """Rules or terminals, each of which is the next one: as many as are taken."""
    lines, size = [f"start: {name}0"], 0
    while size < 500_000:
        lines.append(f"{name}{len(lines) - 1}: {name}{len(lines)}")
        size += len(lines[-1]) + 1
    return "\n".join([*lines, f"{name}{len(lines) - 1}: {last}"])


def nested() -> dict[str, Any]:
    """Definitions, each of which is twice the next one."""
    places = {f"r{i}": {"allOf": [{"$ref": f"#/$defs/r{i + 1}"}] * 2} for i in range(6_000)}
    return {"$ref": "#/$defs/r0", "$defs": {**places, "r6000": {"type": "string"}}}


@pytest.mark.parametrize(
    "wanted",
    [{"grammar": chained("r", '"abc"')}, {"grammar": chained("R", '"abc"')}, {"json": nested()}],
    ids=["rules", "terminals", "schema"],
)
def test_grammars_that_refer_deeply_are_followed(wanted: dict[str, Any]) -> None:
    """They overflow a thread's ordinary stack, which ends the process: here, and where the engine compiles them."""
    request = build_request("r", [1], replace(asks(**wanted), max_tokens=3), INFO, TOKENIZER, seed=0)
    assert request.grammar is not None
    assert len(request.grammar.source) > 400_000  # a schema any longer is refused, and any other grammar above 524,288
    engine = grammar_engine()
    engine.add(request)
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert (deltas[-1].finish_reason, deltas[-1].error) == (FinishReason.LENGTH, None)


@pytest.mark.parametrize(
    "wanted",
    [
        {"json": {"type": "integer", "multipleOf": 300_007}},
        {"json": '{"properties": {"a": {"multipleOf": 3.00007}}}'},
        {"json": {"allOf": [{"multipleOf": 997}, {"items": [{"multipleOf": 991}]}]}},
        {"json": {"$defs": {"a": {"multipleOf": 0}}, "multipleOf": 300_007}},
        {"json": {"multipleOf": 10**400 + 1}},
        {"json": '{"multipleOf": 1' + "0" * 400 + "1}"},
        {"json": {"anyOf": [{"multipleOf": number} for number in range(3, 12_000, 2)]}},
        {"grammar": 'start: "a" %json {"type": "integer", "multipleOf": 300007} "b"'},
        {"grammar": '{"grammars": [{"json_schema": {"type": "integer", "multipleOf": 300007}}]}'},
    ],
    ids=["number", "decimal", "several", "zero", "huge", "long", "many", "lark", "llguidance"],
)
def test_multiples_that_take_minutes_to_compile_are_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"multipleOf: .* above 100000") as refused:
        build_request("r", [1], asks(**wanted), INFO, TOKENIZER, seed=0)
    assert refused.value.param == "structured_outputs"


def test_a_grammar_whose_tokens_take_seconds_is_refused() -> None:
    """A chain of rules each of which may be nothing: they are all looked at for every token."""
    rules = "\n".join(f"r{index}: r{index + 1}?" for index in range(17_000))
    with pytest.raises(InvalidRequest, match="too long for each token"):
        build_request("r", [1], asks(grammar=f'start: r0\n{rules}\nr17000: "b"'), INFO, TOKENIZER, seed=0)


def test_a_grammar_without_a_thread_costs_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def refuse(_: object) -> None:
        raise Rejected("no thread", "queue_full")

    request = build_request("r", [1], asks(regex="an?other"), INFO, TOKENIZER, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr("thranite.text.deep_stack.threading.Thread.start", start)
        with pytest.raises(Rejected, match="no thread"):
            build_request("r", [1], asks(regex="an?y other"), INFO, TOKENIZER, seed=0)
    monkeypatch.setattr("thranite.text.grammar.on_deep_stack", refuse)
    engine, deltas = grammar_engine(), []
    engine.add(request)
    while engine.has_work:
        deltas += engine.step()
    assert (deltas[-1].finish_reason, deltas[-1].error) == (FinishReason.ERROR, "no thread")


@pytest.mark.parametrize("number", [2, 0.01, 1_000_000, 3600, 1e-9])
def test_multiples_that_are_asked_for_are_taken(number: float) -> None:
    schema = {"type": "object", "properties": {"multipleOf": {"type": "number", "multipleOf": number}}}
    assert build_request("r", [1], asks(json=schema), INFO, TOKENIZER, seed=0).grammar is not None


@pytest.mark.parametrize("wanted", [{}, {"regex": "a", "choice": ["b"]}, {"choice": []}, {"choice": [""]}])
def test_exactly_one_kind_is_asked_for(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"structured_outputs must|choice must"):
        StructuredOutputsParams(**wanted)


def test_without_a_tokenizer_or_an_end_of_text_there_are_no_grammars() -> None:
    with pytest.raises(InvalidRequest, match="without a tokenizer"):
        build_request("r", [1], asks(choice=["a"]), INFO, None, seed=0)
    endless = Tokenizer(TOKENIZER.rust)
    with pytest.raises(InvalidRequest, match="end-of-text"):
        build_request("r", [1], asks(choice=["a"]), replace(INFO, eos_token_ids=()), endless, seed=0)
    engine = grammar_engine(grammars=None)
    with pytest.raises(InvalidRequest, match="without a tokenizer"):
        engine.add(EngineRequest("r", (1,), TokenParams(3, 0), grammar=Grammar('start: "a"')))


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_grammars_end_by_the_tokenizer_s_end_alone(ignore_eos: bool) -> None:
    """For a model that names none."""
    engine = grammar_engine(grammars=Grammars(str(DIRECTORY), None, VOCAB, ()))
    wanted = SamplingParams(
        max_tokens=40, ignore_eos=ignore_eos, structured_outputs=StructuredOutputsParams(regex="ab")
    )
    request = build_request("r", [1], wanted, replace(INFO, eos_token_ids=()), TOKENIZER, seed=0)
    engine.add(request)
    tokens: list[int] = []
    reasons = []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.token_ids
            reasons.append(delta.finish_reason)
    assert (TOKENIZER.decode(tokens), reasons[-1]) == ("ab", FinishReason.STOP)


def test_a_grammar_that_fails_in_the_engine_ends_its_request_alone() -> None:
    engine = grammar_engine()
    engine.add(EngineRequest("bad", (1,), TokenParams(5, 0), grammar=Grammar("start: missing")))
    engine.add(EngineRequest("good", (1,), TokenParams(5, 0, eos_token_ids=(EOS_ID,)), grammar=Grammar('start: "a"')))
    ends: dict[str, Any] = {}
    while engine.has_work:
        ends |= {delta.request_id: delta for delta in engine.step() if delta.finish_reason is not None}
    assert (ends["bad"].finish_reason, ends["good"].finish_reason) == (FinishReason.ERROR, FinishReason.STOP)
    assert "missing" in ends["bad"].error
    engine.check_integrity()


def test_whitespace_is_free_unless_disabled() -> None:
    spaced = StructuredOutputsParams(json={"const": [1, 2]})
    texts = [
        run(grammar_engine(), SamplingParams(max_tokens=400, seed=seed, structured_outputs=spaced)) for seed in range(6)
    ]
    done = [text for [[(text, last)]] in texts if last.finish_reason is FinishReason.STOP]
    assert all(json.loads(text) == [1, 2] for text in done)
    assert any(any(space in text for space in " \n\t\r") for [[(text, _)]] in texts)
    assert run(grammar_engine(), asks(json={"const": [1, 2]}))[0][0][0] == "[1,2]"


def test_a_grammar_that_outgrows_its_parser_is_blamed_itself() -> None:
    [[(_, last)]] = run(grammar_engine(), asks(regex="(a|aa){500}b"))
    assert last.finish_reason is FinishReason.ERROR
    assert "cannot be followed to its end: lexer error: too many expressions constructed" in str(last.error)
    assert "other parameters" not in str(last.error)
    assert not str(last.error).endswith(">")


def test_a_vocabulary_that_cannot_be_read_is_told_and_refused(caplog: pytest.LogCaptureFixture) -> None:
    broken = Grammars(str(DIRECTORY), None, 5, (EOS_ID,))
    broken.load()
    assert "structured output is not available" in caplog.text
    engine = grammar_engine(grammars=broken)
    engine.add(EngineRequest("r", (1,), TokenParams(5, 0), grammar=Grammar('start: "a"')))
    ends = [delta for _ in range(4) for delta in engine.step() if delta.finish_reason is not None]
    assert [end.finish_reason for end in ends] == [FinishReason.ERROR]
    assert "cannot follow grammars" in str(ends[0].error)
