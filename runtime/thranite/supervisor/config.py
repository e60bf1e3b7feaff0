"""Options of `thranite serve` beside those of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from thranite.config import flag, option
from thranite.errors import ConfigError
from thranite.sampling_params import Pooling
from thranite.server.keys import ApiKey, read_api_keys
from thranite.supervisor.cores import available_cores, default_server_processes

LogLevel = Literal["debug", "info", "warning", "error"]
GenerationConfig = Literal["auto", "none"]
ToolCallParser = Literal["auto", "none", "hermes", "llama3_json", "mistral"]
ReasoningParser = Literal["auto", "none", "think"]

DEFAULT_TERMINATION_LOG = "/dev/termination-log"  # where kubelet reads a container's last words
MAX_SERVER_PROCESSES = 64
MIN_STALL_TIMEOUT = 1.0  # heartbeats come four times a second


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Options of the server and its supervisor. Times are seconds."""

    host: str = option("0.0.0.0", "address of the OpenAI API; :: also takes IPv6")
    port: int = option(8000, "port of the OpenAI API; 0 takes a free one")
    admin_host: str = option("0.0.0.0", "address of the admin port")
    admin_port: int = option(8001, "port of probes, metrics and drain; 0 takes a free one")
    served_model_name: tuple[str, ...] = option((), "name of the model in the API, repeatable (default: MODEL)")
    add_model: tuple[str, ...] = option(
        (),
        "another model, NAME=MODEL or NAME=MODEL?option=value&option=value with its own options of the engine, "
        "repeatable; on GPUs it needs gpu_memory_utilization, its share beside the others",
    )
    api_key: str | None = option(None, "key that clients of the API must send as a bearer token (default: none)")
    api_key_file: str | None = option(
        None, "file with one such key a line; behind it may stand high, standard or batch"
    )
    admin_key_file: str | None = option(None, "file with the key that callers of the admin port must send")
    chat_template: str | None = option(None, "file with a jinja chat template, instead of the model's own")
    tool_call_parser: ToolCallParser = option(
        "auto", "how the model writes tool calls; auto looks at the chat template, none serves no tools"
    )
    reasoning_parser: ReasoningParser = option(
        "auto", "think splits <think>…</think> off the answer; auto does so where the chat template knows it"
    )
    pooling: Pooling = option("last", "embeddings are the last token's hidden state, or the mean of all tokens'")
    generation_config: GenerationConfig = option(
        "auto", "auto takes the model's recommended sampling where a request says nothing; none does not"
    )
    max_body_bytes: int = option(32 * 2**20, "largest request body")
    tokenizer_threads: int = option(4, "threads that tokenise prompts")
    drain_delay: float = option(5.0, "a draining server still admits requests for so long, while endpoints settle")
    drain_timeout: float = option(25.0, "running requests are cut off so long after a drain began")
    stall_timeout: float | None = option(
        None, "the engine hangs when no step finishes for so long (default: 20 times the predicted step, at least 10 s)"
    )
    server_processes: int | None = option(None, "processes that speak HTTP (default: one for every 4 cores, at most 8)")
    log_level: LogLevel = option("info", "least severity that is logged")
    access_log: bool = option(False, "write a JSON line to stdout for every HTTP request, without what it says")
    access_log_prompts: bool = option(False, "add request bodies to the access log, up to 16 KiB each")
    ssl_certfile: str | None = option(None, "PEM certificate chain: --port then speaks TLS; the admin port never does")
    ssl_keyfile: str | None = option(None, "PEM key of --ssl-certfile, if that file does not hold it")
    allowed_origins: tuple[str, ...] = option(
        (), "origin of web pages that may call the API, repeatable; * is any (default: none but the server's own)"
    )
    client_timeout: float = option(30.0, "a client that reads nothing, or sends no whole request, is dropped after it")
    keep_alive_seconds: int = option(
        75, "a connection between two requests is kept for so long; proxies before the server must keep it for less"
    )
    otlp_traces_endpoint: str | None = option(
        None, "OTLP/HTTP collector that spans go to, such as http://otel:4318/v1/traces"
    )
    termination_log_path: str = option(DEFAULT_TERMINATION_LOG, "file that names stage and cause of a failure")
    runtime_dir: str | None = option(None, "directory for the processes' sockets (default: a temporary one)")

    def __post_init__(self) -> None:
        for name in ("port", "admin_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{flag(name)} must lie between 0 and 65535, got {getattr(self, name)}")
        if self.port == self.admin_port != 0:
            raise ConfigError(f"--port and --admin-port are both {self.port}")
        for name in ("drain_delay", "drain_timeout"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{flag(name)} must be 0 or more seconds, got {getattr(self, name)}")
        if not 0 < self.client_timeout < float("inf"):
            raise ConfigError(f"--client-timeout must be above 0 seconds, got {self.client_timeout}")
        if self.stall_timeout is not None and not self.stall_timeout >= MIN_STALL_TIMEOUT:
            raise ConfigError(f"--stall-timeout must be at least {MIN_STALL_TIMEOUT} s, got {self.stall_timeout}")
        if self.server_processes is not None and not 1 <= self.server_processes <= MAX_SERVER_PROCESSES:
            raise ConfigError(
                f"--server-processes must lie between 1 and {MAX_SERVER_PROCESSES}, got {self.server_processes}"
            )
        _check_choice("log_level", self.log_level, get_args(LogLevel))
        _check_choice("generation_config", self.generation_config, get_args(GenerationConfig))
        _check_choice("tool_call_parser", self.tool_call_parser, get_args(ToolCallParser))
        _check_choice("pooling", self.pooling, get_args(Pooling))
        _check_choice("reasoning_parser", self.reasoning_parser, get_args(ReasoningParser))
        for name, least in (("tokenizer_threads", 1), ("keep_alive_seconds", 1), ("max_body_bytes", 1024)):
            if getattr(self, name) < least:
                raise ConfigError(f"{flag(name)} must be at least {least}, got {getattr(self, name)}")

    def server_count(self) -> int:
        """How many server processes there are to be; looks at the machine unless the option says."""
        return self.server_processes or default_server_processes(available_cores())

    def api_keys(self) -> tuple[ApiKey, ...]:
        """All keys that clients may send; empty: none is asked for. Reads the file. Raises ConfigError."""
        return read_api_keys(self.api_key_file, self.api_key)

    def admin_key(self) -> str | None:
        """The admin port's key, if it has one. Reads the file. Raises ConfigError."""
        if self.admin_key_file is None:
            return None
        try:
            key = Path(self.admin_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--admin-key-file {self.admin_key_file} cannot be read: {error}") from error
        if not key or any(character.isspace() for character in key):
            raise ConfigError(f"--admin-key-file {self.admin_key_file} must hold one key, and nothing else")
        return key

    def chat_template_source(self) -> str | None:
        """Reads the file. Raises ConfigError."""
        if self.chat_template is None:
            return None
        try:
            return Path(self.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {self.chat_template} cannot be read: {error}") from error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{flag(name)} must be one of {', '.join(choices)}; got {value!r}")
