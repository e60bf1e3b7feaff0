"""The null device behind the real engine with a byte-level vocabulary, for grammars; and JSON schemas to try."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema_rs
from hypothesis import strategies as st

from tests.support.paged_executor import settings
from tests.support.tiny_tokenizers import EOS, byte_level, save
from thranite.engine.client import EngineInfo
from thranite.engine.engine import Engine
from thranite.engine.grammar import Grammars
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.request import FinishReason, SequenceDelta
from thranite.sampling_params import SamplingParams, StructuredOutputsParams
from thranite.text.prompt import build_request
from thranite.text.tokenizer import Tokenizer

VOCAB = 288  # wider than the tokenizer's, as models' often are
LENGTH = 4096
_kept = TemporaryDirectory(prefix="grammar-")  # for as long as the tests run
DIRECTORY = save(byte_level(), Path(_kept.name) / "model")
TOKENIZER = Tokenizer.load(DIRECTORY)
EOS_ID = TOKENIZER.eos_token_id or 0
_ids = itertools.count()


@cache
def grammars() -> Grammars:
    return Grammars(str(DIRECTORY), None, VOCAB, (EOS_ID,))


def grammar_engine(**changes: Any) -> Engine:
    """`settings` of one fast null device."""
    fields: dict[str, Any] = {
        "num_blocks": 2 * LENGTH,
        "max_model_len": LENGTH,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 64,
        "vocab_size": VOCAB,
        "grammars": grammars(),
    }
    chosen = settings(**{**fields, **changes})
    return Engine(chosen, NullExecutor(chosen, NullPace(), eos_token_ids=(EOS_ID,)))


INFO = EngineInfo(
    max_model_len=LENGTH,
    vocab_size=VOCAB,
    max_num_seqs=32,
    num_kv_blocks=2 * LENGTH,
    block_size=4,
    eos_token_ids=(EOS_ID,),
    architecture="Null",
    dtype="float32",
    seed=0,
)


def run(engine: Engine, *many: SamplingParams, prompt: str = "hello") -> list[list[tuple[str, SequenceDelta]]]:
    """Text and last delta of every sample of requests that run together."""
    requests = [
        build_request(str(next(_ids)), TOKENIZER.encode(prompt), params, INFO, TOKENIZER, seed=index)
        for index, params in enumerate(many)
    ]
    tokens: dict[tuple[str, int], list[int]] = {}
    last: dict[tuple[str, int], SequenceDelta] = {}
    for request in requests:
        engine.add(request)
    sequences = (sequence for parent in engine._requests.values() for sequence in parent.sequences)
    for sequence in sequences:  # no plan depends on how long a compilation takes
        if sequence.constraint is not None:
            sequence.constraint.wait(60)
    while engine.has_work:
        for delta in engine.step():
            tokens.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
            last[delta.request_id, delta.index] = delta
    engine.check_integrity()
    return [
        [
            (TOKENIZER.decode(tokens[request.request_id, index]), last[request.request_id, index])
            for index in range(request.params.n)
        ]
        for request in requests
    ]


def asks(seed: int = 0, **wanted: Any) -> SamplingParams:
    """Structured output of as many tokens as it takes."""
    wanted.setdefault("disable_any_whitespace", "json" in wanted or "json_object" in wanted)
    return SamplingParams(max_tokens=None, seed=seed, structured_outputs=StructuredOutputsParams(**wanted))


def assert_valid(text: str, schema: Any) -> None:
    value = json.loads(text)
    errors = [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(value)]
    assert errors == [], (schema, text)


def assert_all_valid(schemas: list[Any], least_finished: float = 0.6) -> None:
    """Runs every schema; what ends by itself must parse and validate. Output cut for length is only counted."""
    finished = 0
    for start in range(0, len(schemas), 32):
        batch = schemas[start : start + 32]
        wanted = [replace(asks(seed, json=json.dumps(schema)), max_tokens=1500) for seed, schema in enumerate(batch)]
        for schema, [(text, last)] in zip(batch, run(grammar_engine(), *wanted), strict=True):
            assert last.error is None, (schema, last.error)
            if last.finish_reason is FinishReason.STOP:
                finished += 1
                assert_valid(text, schema)
    assert finished >= least_finished * len(schemas), f"{finished} of {len(schemas)} ended"


_names = st.sampled_from(["a", "b", "name", "x y", 'quo"te', "é", "long_property_name", ""])
_literals = st.none() | st.booleans() | st.integers(-50, 50) | st.text('ab"\\\né', max_size=4)


def _numbers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.integers(-30, 30), st.integers(0, 40)).map(
        lambda pair: {"type": kind, "minimum": pair[0], "maximum": pair[0] + pair[1]}
    )


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
    )
    patterns = st.sampled_from(["^a+b?$", "^[0-9]{2,4}$", "^(x|yy)*$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 12, "minLength": 1}
    )
    formats = st.sampled_from(["date", "uuid", "ipv4", "time"]).map(lambda name: {"type": "string", "format": name})
    return lengths | patterns | formats


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    fixed = st.sampled_from(["boolean", "null"]).map(lambda kind: {"type": kind})
    enums = st.lists(_literals, min_size=1, max_size=4, unique_by=repr).map(lambda values: {"enum": values})
    return st.one_of(fixed, _numbers("integer"), _numbers("number"), _strings(), enums, _literals.map(_const))


def _const(value: Any) -> dict[str, Any]:
    return {"const": value}


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], optional: int, extra: Any) -> dict[str, Any]:
        required = list(properties)[optional:]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}

    extra = st.just(False) | st.just(False) | _numbers("integer")
    return st.builds(build, st.dictionaries(_names, inner, max_size=4), st.integers(0, 2), extra)


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(_objects(inner), arrays, choices)


SCHEMAS = st.recursive(_leaves(), _composed, max_leaves=6)
assert byte_level().token_to_id(EOS) == EOS_ID
