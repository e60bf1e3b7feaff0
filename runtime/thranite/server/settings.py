"""What the operator of a server decides about it, besides the engine: frozen, documented where declared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thranite.errors import ConfigError
from thranite.sampling_params import Pooling
from thranite.server.keys import ApiKey
from thranite.text.tools.calls import PARSERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Options of the OpenAI wire. The first of `served_model_names` is the one that metrics and fingerprints name."""

    served_model_names: tuple[str, ...]
    api_keys: tuple[ApiKey, ...] = field(default=(), repr=False)  # (): anyone may ask
    chat_template: str | None = field(default=None, repr=False)  # jinja source, instead of the model's own
    default_sampling: Mapping[str, Any] = field(default_factory=dict)  # SamplingParams fields that requests leave out
    max_body_bytes: int = 32 * 2**20
    tokenizer_threads: int = 4
    tool_call_parser: str = "auto"  # a notation of text.tools.calls; auto: the chat template tells; none: no tools
    pooling: Pooling = "last"  # of hidden states, for embeddings
    reasoning_parser: str = "auto"  # think: <think>…</think> is split off; auto: the chat template tells; none
    process_index: int = 0  # among the server processes of one engine; keeps their seeds apart
    model_root: str | None = None  # where the weights came from, shown by /v1/models
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise ConfigError("--served-model-name must name the model at least once")
        if self.tokenizer_threads < 1:
            raise ConfigError(f"--tokenizer-threads must be at least 1, got {self.tokenizer_threads}")
        _check_choice("--tool-call-parser", self.tool_call_parser, ("auto", "none", *PARSERS))
        _check_choice("--reasoning-parser", self.reasoning_parser, ("auto", "none", "think"))
        if self.max_body_bytes < 1024:
            raise ConfigError(f"--max-body-bytes must be at least 1024, got {self.max_body_bytes}")


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{flag} must be one of {', '.join(choices)}; got {value!r}")
