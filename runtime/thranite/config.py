"""Every option of the engine and the server: frozen, documented where it is declared, checked when it is made.

`EngineConfig` is what the user asked for; `thranite.loader.plan` turns it into what the machine can give.
`thranite.cli.flags` generates the command line and the THRANITE_… environment variables from these fields.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from thranite.errors import ConfigError
from thranite.plain_numbers import plain_float, plain_integer

Device = Literal["auto", "cuda", "cpu", "null"]
DType = Literal["auto", "float64", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "dummy"]
FLOATS = ("gpu_memory_utilization", "priority_aging_seconds", "high_priority_share", "target_inter_token_latency_ms",
          "prompt_time_ratio", "null_step_seconds", "null_prompt_token_seconds", "null_row_seconds")  # fmt: skip


def option(default: Any, help: str) -> Any:
    """A dataclass field with its documentation, from which the command line's flag is made."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of one engine, spelt as the field spells them."""

    model: str = field(metadata={"help": "model directory, or a Hugging Face hub id"})
    tokenizer: str | None = option(None, "tokenizer directory or hub id, if not the model's own")
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    tensor_parallel_size: int = option(
        1, "GPUs over which each layer is split, one process each; must divide the model's heads"
    )
    max_model_len: int | None = option(
        None, "longest prompt plus output, in tokens (default: the model's, or what fits)"
    )
    dtype: DType = option("auto", "type of weights and activations; auto is the checkpoint's (float32 on the CPU)")
    load_format: LoadFormat = option("auto", "dummy draws random-normal weights; config.json is enough")
    device: Device = option("auto", "null makes tokens up at a set pace, for load tests")
    gpu_memory_utilization: float = option(0.9, "share of each device's memory for weights, activations and KV cache")
    kv_cache_memory_bytes: int | None = option(None, "bytes of KV cache on each device, instead of what memory leaves")
    kv_cache_dtype: DType = option("auto", "type of stored keys and values; auto is the model's")
    block_size: int | None = option(None, "tokens a KV block (default: 64 on GPUs, 32 on the CPU)")
    enable_prefix_caching: bool = option(
        True, "keep the KV blocks of finished requests for prompts that share a prefix"
    )
    max_num_seqs: int | None = option(
        None, "sequences that run at once (default: 1024 on GPUs of 80 GB, else 256; 64 on the CPU)"
    )
    max_num_batched_tokens: int | None = option(
        None, "tokens a step at most, prompts and outputs together (default: 8448; over GPUs 8192; 2048 on the CPU)"
    )
    enforce_eager: bool = option(False, "run without CUDA graphs")
    kernel_cache: str | None = option(
        None,
        "folder of GPU kernels that `thranite compile --into` made: copied to Triton's cache when the engine starts",
    )
    peer_all_reduce: bool = option(
        True, "GPUs sum small tensors through each other's memory where they can reach it; off: through NCCL alone"
    )
    overlap: bool = option(True, "plan and launch a step before the last one's tokens are read")
    seed: int = option(0, "seeds requests that bring none")
    priority_aging_seconds: float = option(10.0, "waiting this long outweighs one step of priority")
    max_waiting_requests: int = option(4096, "requests that may wait; beyond it new ones are refused")
    max_waiting_tokens: int = option(2**22, "prompt tokens that may wait; beyond it new requests are refused")
    high_priority_share: float = option(0.1, "share of both bounds that only requests of priority below 0 may fill")
    target_inter_token_latency_ms: float | None = option(
        None, "run only as many sequences at once as get a token so often (default: as many as there are slots)"
    )
    prompt_time_ratio: float | None = option(
        None,
        "while sequences decode, prompts prolong a step by at most so many times what it takes without them, unless "
        "prompts pile up; 0: by as much as the token budget allows (default: 2 when served, else 0)",
    )
    skip_tokenizer_init: bool = option(False, "token ids in, token ids out")
    null_step_seconds: float = option(0.01, "device null: time of one step")
    null_prompt_token_seconds: float = option(0.0, "device null: added to a step for each prompt token it computes")
    null_row_seconds: float = option(0.0, "device null: added to a step for each running sequence")

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "seed", _integer("seed", self.seed))
        for name in ("tensor_parallel_size", "max_model_len", "kv_cache_memory_bytes", "block_size", "max_num_seqs",
                     "max_num_batched_tokens", "max_waiting_requests", "max_waiting_tokens"):  # fmt: skip
            if getattr(self, name) is None:
                continue
            value = _integer(name, getattr(self, name))
            object.__setattr__(self, name, value)
            if value < 1:
                raise ConfigError(f"{flag(name)} must be at least 1, got {value}")
        for name in FLOATS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _float(name, getattr(self, name)))
        for name in ("null_step_seconds", "null_prompt_token_seconds", "null_row_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{flag(name)} must not be negative, got {getattr(self, name)}")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"--gpu-memory-utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}"
            )
        if not 0.0 <= self.high_priority_share < 1.0:
            raise ConfigError(f"--high-priority-share must be at least 0 and below 1, got {self.high_priority_share}")
        if self.target_inter_token_latency_ms is not None and not self.target_inter_token_latency_ms > 0:
            raise ConfigError(
                f"--target-inter-token-latency-ms must be above 0, got {self.target_inter_token_latency_ms}"
            )
        if self.prompt_time_ratio is not None and not 0 <= self.prompt_time_ratio < math.inf:
            raise ConfigError(f"--prompt-time-ratio must be a finite number from 0 on, got {self.prompt_time_ratio}")
        if self.priority_aging_seconds <= 0:
            raise ConfigError(f"--priority-aging-seconds must be above 0, got {self.priority_aging_seconds}")

    @property
    def tokenizer_source(self) -> tuple[str, str | None]:
        """Where the tokenizer is, and its revision, which `revision` says of the model's own alone."""
        return (self.model, self.revision) if self.tokenizer is None else (self.tokenizer, None)


def flag(name: str) -> str:
    """The command line's spelling of a field: max_model_len → --max-model-len."""
    return "--" + name.replace("_", "-")


def _integer(name: str, value: Any) -> int:
    try:
        return plain_integer(value)
    except TypeError as error:
        raise ConfigError(f"{flag(name)} must be an integer, got {value!r}") from error


def _float(name: str, value: Any) -> float:
    try:
        return plain_float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{flag(name)} must be a number, got {value!r}") from error


def check_choices(config: Any) -> None:
    """Refuse a value outside a field's Literal, naming the flag and the choices."""
    hints = {"device": Device, "dtype": DType, "kv_cache_dtype": DType, "load_format": LoadFormat}
    for item in dataclasses.fields(config):
        if item.name in hints and getattr(config, item.name) not in get_args(hints[item.name]):
            choices = ", ".join(get_args(hints[item.name]))
            raise ConfigError(f"{flag(item.name)} must be one of {choices}; got {getattr(config, item.name)!r}")
