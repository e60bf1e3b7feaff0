"""Structured output over every schema of the public JSON-Schema-Test-Suite (draft 2020-12)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest

from dev.fetch_json_schema_suite import fetch, suite_directory
from tests.support.grammar_engine import INFO, TOKENIZER, asks, grammar_engine, run
from thranite.errors import InvalidRequest
from thranite.request import FinishReason
from thranite.text.prompt import build_request


def schemas() -> list[Any]:
    directory = suite_directory()
    if not directory.is_dir():
        fetch(directory)
    files = [json.loads(path.read_text()) for path in sorted((directory / "draft2020-12").glob("*.json"))]
    return [case["schema"] for file in files for case in file]


def refusal(schema: Any) -> InvalidRequest | None:
    try:
        build_request("r", [1], asks(json=json.dumps(schema)), INFO, TOKENIZER, seed=0)
    except InvalidRequest as error:
        return error
    return None


def errors_in(text: str, schema: Any) -> list[str]:
    return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(json.loads(text))]


@pytest.mark.slow
def test_what_compiles_is_kept_to() -> None:
    every = schemas()
    refusals = [refusal(schema) for schema in every]
    assert all(error.param == "structured_outputs" and error.message for error in refusals if error is not None)
    usable = [schema for schema, error in zip(every, refusals, strict=True) if error is None]
    assert len(usable) >= 0.4 * len(every), f"{len(usable)} of {len(every)} compile"
    finished, wrong = 0, []
    for start in range(0, len(usable), 32):
        batch = usable[start : start + 32]
        wanted = [replace(asks(seed, json=json.dumps(schema)), max_tokens=1500) for seed, schema in enumerate(batch)]
        for schema, [(text, last)] in zip(batch, run(grammar_engine(), *wanted), strict=True):
            assert last.error is None, (schema, last.error)
            if last.finish_reason is FinishReason.STOP:
                finished += 1
                if errors_in(text, schema):
                    wrong.append((schema, text))
    print(f"{len(every)} schemas, {len(usable)} compile, {finished} ended, {len(wrong)} do not validate")
    assert finished >= 0.5 * len(usable)
    assert wrong == []
