"""The wire's several ways to ask for structured output, as one StructuredOutputsParams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thranite.errors import InvalidRequest
from thranite.request import FinishReason
from thranite.sampling_params import StructuredOutputsParams
from thranite.server.errors import GenerationFailed
from thranite.server.wire.request import (
    GenerationRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
)

_FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def structured_outputs(request: GenerationRequest) -> StructuredOutputsParams | None:
    """What the request asks for. Raises InvalidRequest where it asks in two ways."""
    fields = _fields(request)
    if not fields:
        return None
    if len(fields) > 1:
        raise InvalidRequest(f"{fields[0]} and {fields[1]} both say what the text must be: set one of them", fields[1])
    with naming_its_field(request):
        if fields == ["response_format"]:
            return _of_format(request.response_format)
        if request.structured_outputs is not None:
            return _of_struct(request.structured_outputs)
        return StructuredOutputsParams(
            json=schema_text(request.guided_json),
            regex=request.guided_regex,
            choice=request.guided_choice,
            grammar=request.guided_grammar,
        )


@contextmanager
def naming_its_field(request: GenerationRequest, field: str | None = None) -> Iterator[None]:
    """Errors about structured output name the field that asked for it: `field`, or the request's own.

    Those of an answer under way, too: nothing but its grammar fails a request alone.
    """
    try:
        yield
    except (InvalidRequest, GenerationFailed) as error:
        named = field or next(iter(_fields(request)), None)
        if named is None:
            raise
        if isinstance(error, GenerationFailed):
            if error.reason != FinishReason.ERROR:
                raise
            raise InvalidRequest(error.message, named, "generation_failed") from error
        if error.param != "structured_outputs":
            raise
        raise InvalidRequest(error.message, named, error.code) from error


def schema_text(schema: dict[str, Any] | bool | str | None) -> str | None:
    """A JSON schema, in any of the wire's forms, as text."""
    return schema if schema is None or isinstance(schema, str) else json.dumps(schema)


def _fields(request: GenerationRequest) -> list[str]:
    given = [name for name in _FIELDS if getattr(request, name) is not None]
    return [name for name in given if name != "response_format" or _of_format(request.response_format) is not None]


def _of_format(wanted: ResponseFormat | None) -> StructuredOutputsParams | None:
    if isinstance(wanted, JsonObjectFormat):
        return StructuredOutputsParams(json_object=True)
    if isinstance(wanted, JsonSchemaFormat):
        schema = wanted.json_schema.schema
        if schema is None:
            return StructuredOutputsParams(json_object=True)
        return StructuredOutputsParams(json=schema_text(schema))
    return None


def _of_struct(wanted: StructuredOutputs) -> StructuredOutputsParams:
    return StructuredOutputsParams(
        json=schema_text(wanted.json),
        regex=wanted.regex,
        choice=wanted.choice,
        grammar=wanted.grammar,
        json_object=bool(wanted.json_object),
        disable_any_whitespace=bool(wanted.disable_any_whitespace),
    )
