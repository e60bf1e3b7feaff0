"""What a server process reads before it can answer: the tokenizer and the model's sampling defaults."""

from __future__ import annotations

from typing import Literal

from thranite.config import EngineConfig
from thranite.ipc.control import StartServer
from thranite.loader.hub import resolve_model
from thranite.server.keys import ApiKey, KeyClass
from thranite.server.settings import ServerSettings, read_default_sampling
from thranite.text.tokenizer import Tokenizer


def load_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """None under --skip-tokenizer-init. Raises StartupError."""
    if config.skip_tokenizer_init:
        return None
    if config.tokenizer is not None:
        return Tokenizer.load(config.tokenizer)
    return Tokenizer.load(config.model, config.revision)


def make_settings(start: StartServer) -> ServerSettings:
    """Raises StartupError."""
    return ServerSettings(
        served_model_names=start.served_model_names,
        api_keys=tuple(ApiKey(value, KeyClass(name)) for value, name in start.api_keys),
        chat_template=start.chat_template,
        default_sampling=_default_sampling(start.config, start.generation_config),
        max_body_bytes=start.max_body_bytes,
        tokenizer_threads=start.tokenizer_threads,
        tool_call_parser=start.tool_call_parser,
        reasoning_parser=start.reasoning_parser,
        pooling=start.pooling,
        process_index=start.process_index,
        model_root=start.config.model,
    )


def _default_sampling(config: EngineConfig, mode: Literal["auto", "none"]) -> dict[str, object]:
    if mode == "none":
        return {}
    return read_default_sampling(mode, resolve_model(config.model, revision=config.revision, weights=False))
