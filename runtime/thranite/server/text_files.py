"""What a server process reads before it can answer for a model: the tokenizer and the model's sampling defaults."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from thranite.config import EngineConfig
from thranite.errors import InvalidRequest, StartupError
from thranite.ipc.control import AddModel, StartServer
from thranite.loader.model_config import read_model_config
from thranite.models.registry import load_spec
from thranite.server.keys import ApiKey, KeyClass
from thranite.server.settings import ServerSettings
from thranite.text.generation_config import read_default_sampling
from thranite.text.grammar import load_vocabulary
from thranite.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """None under --skip-tokenizer-init. Raises StartupError."""
    return None if config.skip_tokenizer_init else Tokenizer.load(*config.tokenizer_source)


def load_first_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """That of the model a process begins with, its vocabulary read for grammars, too, while the engine loads: it keeps
    the interpreter's lock for about a second for 100,000 tokens, which at the first grammar would hold up every
    stream. (With models added later it waits for their first grammar, which may never come.)"""
    tokenizer = load_tokenizer(config)
    if tokenizer is not None:
        _read_vocabulary(tokenizer, config)
    return tokenizer


def _read_vocabulary(tokenizer: Tokenizer, config: EngineConfig) -> None:
    """Where it cannot be read, requests with a grammar are told why."""
    if find_spec("llguidance") is None:
        return
    try:
        files = read_model_config(config.model, config.revision)
        spec = load_spec(files.config, generation_config=files.generation_config)
        load_vocabulary(tokenizer, spec.vocab_size, tokenizer.ends(spec.eos_token_ids, spec.vocab_size))
    except StartupError as error:  # the engine's to report: it reads the same files
        logger.debug("no vocabulary for grammars: %s", error)
    except InvalidRequest as error:
        logger.warning("structured output is not available: %s", error)


def make_settings(start: StartServer) -> ServerSettings:
    """The first model's. Raises StartupError."""
    model = AddModel(
        name=start.served_model_names[0],
        config=start.config,
        chat_template=start.chat_template,
        generation_config=start.generation_config,
        tool_call_parser=start.tool_call_parser,
        reasoning_parser=start.reasoning_parser,
        pooling=start.pooling,
    )
    return _settings(start, start.served_model_names, model)


def added_texts(start: StartServer, model: AddModel) -> tuple[Tokenizer | None, ServerSettings]:
    """What requests for a model beside the first need. Raises StartupError."""
    return load_tokenizer(model.config), _settings(start, (model.name,), model)


def api_keys(start: StartServer) -> tuple[ApiKey, ...]:
    """Those that clients may send; (): anyone may ask."""
    return tuple(ApiKey(value, KeyClass(name)) for value, name in start.api_keys)


def _settings(start: StartServer, names: tuple[str, ...], model: AddModel) -> ServerSettings:
    """Keys, bodies and threads are the server's, the rest is the model's."""
    return ServerSettings(
        served_model_names=names,
        api_keys=api_keys(start),
        chat_template=model.chat_template,
        default_sampling=read_default_sampling(model.generation_config, model.config.model, model.config.revision),
        max_body_bytes=start.max_body_bytes,
        tokenizer_threads=start.tokenizer_threads,
        tool_call_parser=model.tool_call_parser,
        reasoning_parser=model.reasoning_parser,
        pooling=model.pooling,
        process_index=start.process_index,
        model_root=model.config.model,
    )
