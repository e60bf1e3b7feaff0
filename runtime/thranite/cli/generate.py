"""Complete prompts in this process, without a server: prompts from --prompt, or one a line from standard input."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thranite.cli.flags import add_flags, build
from thranite.config import EngineConfig, option
from thranite.errors import ConfigError
from thranite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from thranite.outputs import RequestOutput


# Options of an engine that many clients share: a batch given at once neither queues nor ages.
SHARED_ONLY = frozenset(
    {
        "priority_aging_seconds",
        "max_waiting_requests",
        "max_waiting_tokens",
        "high_priority_share",
        "target_inter_token_latency_ms",
        "prompt_time_ratio",
        "null_step_seconds",
        "null_prompt_token_seconds",
        "null_row_seconds",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    prompt: tuple[str, ...] = option((), "a prompt; repeatable (default: one a line of standard input)")
    chat: bool = option(False, "send each prompt as a user's message, with the chat template")
    json: bool = option(False, "print one JSON object a prompt")
    n: int = option(1, "samples a prompt")
    max_tokens: int = option(128, "longest output in tokens")
    temperature: float = option(0.0, "0 is greedy")
    top_p: float = option(1.0, "smallest set of likely tokens to draw from")
    top_k: int = option(0, "tokens to draw from; 0: all")
    stop: tuple[str, ...] = option((), "end the output before this text; repeatable")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine", exclude=SHARED_ONLY)
    add_flags(parser, GenerateConfig, "what to generate")


def run(args: argparse.Namespace) -> int:
    config, asked = build(EngineConfig, args, os.environ), build(GenerateConfig, args, os.environ)
    sampling = SamplingParams(
        n=asked.n,
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=list(asked.stop),
    )
    prompts = asked.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ConfigError("there is no prompt", "pass --prompt TEXT, or one prompt a line on standard input")
    from thranite.llm import LLM

    names = {field.name for field in dataclasses.fields(config)} - SHARED_ONLY
    llm = LLM(**{name: getattr(config, name) for name in names}, generation_config="none")  # sampling is all given
    if asked.chat:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
    else:
        outputs = llm.generate(prompts, sampling)
    for prompt, output in zip(prompts, outputs, strict=True):
        print(json.dumps(_record(prompt, output), ensure_ascii=False) if asked.json else _text(prompt, output, asked))
    return 0


def _record(prompt: str, output: RequestOutput) -> dict[str, Any]:
    samples = [
        {"text": sample.text, "tokens": len(sample.token_ids), "finish_reason": sample.finish_reason}
        for sample in output.outputs
    ]
    return {"prompt": prompt, "prompt_tokens": len(output.prompt_token_ids), "outputs": samples}


def _text(prompt: str, output: RequestOutput, asked: GenerateConfig) -> str:
    """A completion continues its prompt; a chat answer stands under its question."""
    join = "\n" if asked.chat else ""
    return "\n\n".join(f"{prompt}{join}{sample.text}" for sample in output.outputs)
