"""A model beside the first, from what a user says of it: on the command line or to the admin port.

It takes the options of the command line, but those that describe the first model, which begin at their defaults; any
can be said for it, spelt as the flags are, with underscores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from thranite.config import EngineConfig, check_choices
from thranite.errors import ConfigError, InvalidRequest, UnsupportedModel
from thranite.ipc.control import AddModel
from thranite.loader.device_memory import parse_bytes
from thranite.sampling_params import Pooling
from thranite.server.settings import ServerSettings

T = TypeVar("T")

MAX_NAME = 256
OF_THE_FIRST = ("tokenizer", "revision", "max_model_len", "kv_cache_memory_bytes")
BYTES = "kv_cache_memory_bytes"
ENGINE = {field.name for field in dataclasses.fields(EngineConfig)} - {"model"}


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a server process makes of the model's texts. `chat_template`: a file."""

    chat_template: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    pooling: Pooling = "last"
    generation_config: Literal["auto", "none"] = "auto"


TEXT = {field.name for field in msgspec.structs.fields(TextOptions)}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What models beside the first begin with: the first one's engine, and what the command line says of texts."""

    engine: EngineConfig
    pooling: Pooling = "last"
    generation_config: Literal["auto", "none"] = "auto"

    def define(self, name: str, model: str, options: Mapping[str, object], *, strict: bool = True) -> AddModel:
        """`strict`: values have their types already. Raises InvalidRequest with the option's name."""
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidRequest(f"a model's name has 1 to {MAX_NAME} printable characters, got {name!r}", "name")
        if not model:
            raise InvalidRequest("say which model: a directory or a hub id", "model")
        unknown = sorted(set(options) - ENGINE - TEXT)
        if unknown:
            raise InvalidRequest(f"{unknown[0]!r} is no option of a model; known: {_listed()}", unknown[0])
        fields = dict(options)
        if isinstance(fields.get(BYTES), str):
            fields[BYTES] = _bytes(str(fields[BYTES]))
        engine = self._engine(model, {key: fields[key] for key in fields if key in ENGINE}, strict)
        texts = self._texts({key: fields[key] for key in fields if key in TEXT}, strict)
        return AddModel(
            name=name,
            config=engine,
            chat_template=_template(texts.chat_template),
            generation_config=texts.generation_config,
            tool_call_parser=texts.tool_call_parser,
            reasoning_parser=texts.reasoning_parser,
            pooling=texts.pooling,
        )

    def parse(self, text: str) -> AddModel:
        """From the text of --add-model. Raises ConfigError."""
        name, separator, rest = text.partition("=")
        model, _, query = rest.partition("?")
        try:
            if not separator:
                raise InvalidRequest("write NAME=MODEL, or NAME=MODEL?option=value&option=value")
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
            return self.define(name, model, {key.replace("-", "_"): value for key, value in pairs}, strict=False)
        except (InvalidRequest, ValueError) as error:
            message = error.message if isinstance(error, InvalidRequest) else str(error)
            raise ConfigError(f"--add-model {text}: {message}") from error

    def _engine(self, model: str, options: dict[str, object], strict: bool) -> EngineConfig:
        base = {
            field.name: field.default if field.name in OF_THE_FIRST else getattr(self.engine, field.name)
            for field in dataclasses.fields(EngineConfig)
        }
        config = _convert({**base, **options, "model": model}, EngineConfig, strict)
        check_choices(config)
        return config

    def _texts(self, options: dict[str, object], strict: bool) -> TextOptions:
        base = {"pooling": self.pooling, "generation_config": self.generation_config}
        texts = _convert({**base, **options}, TextOptions, strict)
        try:
            ServerSettings(
                served_model_names=("model",),
                tool_call_parser=texts.tool_call_parser,
                reasoning_parser=texts.reasoning_parser,
            )
        except ConfigError as error:
            raise InvalidRequest(error.message) from error
        return texts


def _convert(values: dict[str, object], kind: type[T], strict: bool) -> T:
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`")
        raise InvalidRequest(f"{message} in field {field}" if field else message, field or None) from error
    except ConfigError as error:
        raise InvalidRequest(error.message) from error


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise InvalidRequest(error.message, BYTES) from error


def _template(path: str | None) -> str | None:
    """The source of a chat template that can be parsed."""
    if path is None:
        return None
    from thranite.text.chat_template import ChatTemplate  # jinja2, which few models need here

    try:
        source = Path(path).read_text(encoding="utf-8")
        ChatTemplate(source, {})
    except (OSError, ValueError) as error:  # no text, or a path with a null character
        raise InvalidRequest(f"{path} cannot be read: {error}", "chat_template") from error
    except UnsupportedModel as error:
        raise InvalidRequest(f"{path}: {error.message}", "chat_template") from error
    return source


def _listed() -> str:
    return ", ".join(sorted(ENGINE | TEXT))
