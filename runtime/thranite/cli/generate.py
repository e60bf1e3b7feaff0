"""Complete prompts in this process, without a server: prompts from --prompt, or one a line from standard input."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from thranite.cli.flags import add_flags, build
from thranite.config import EngineConfig
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine", exclude=SHARED_ONLY)
    group = parser.add_argument_group("what to generate")
    group.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; repeatable")
    group.add_argument(
        "--chat", action="store_true", help="send each prompt as a user's message, with the chat template"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    group.add_argument("--n", type=int, default=1, help="samples a prompt (default: 1)")
    group.add_argument("--max-tokens", type=int, default=128, help="longest output in tokens (default: 128)")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    group.add_argument(
        "--top-p", type=float, default=1.0, help="smallest set of likely tokens to draw from (default: 1)"
    )
    group.add_argument("--top-k", type=int, default=0, help="tokens to draw from; 0: all (default: 0)")
    group.add_argument("--stop", metavar="TEXT", action="append", help="end the output before this text; repeatable")


def run(args: argparse.Namespace) -> int:
    config = build(EngineConfig, args, os.environ)
    sampling = SamplingParams(
        n=args.n,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        stop=args.stop,
    )
    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ConfigError("there is no prompt", "pass --prompt TEXT, or one prompt a line on standard input")
    from thranite.llm import LLM

    names = {field.name for field in dataclasses.fields(config)} - SHARED_ONLY
    llm = LLM(**{name: getattr(config, name) for name in names})
    if args.chat:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
    else:
        outputs = llm.generate(prompts, sampling)
    for prompt, output in zip(prompts, outputs, strict=True):
        print(json.dumps(_record(prompt, output), ensure_ascii=False) if args.json else _text(prompt, output, args))
    return 0


def _record(prompt: str, output: RequestOutput) -> dict[str, Any]:
    samples = [
        {"text": sample.text, "tokens": len(sample.token_ids), "finish_reason": sample.finish_reason}
        for sample in output.outputs
    ]
    return {"prompt": prompt, "prompt_tokens": len(output.prompt_token_ids), "outputs": samples}


def _text(prompt: str, output: RequestOutput, args: argparse.Namespace) -> str:
    """A completion continues its prompt; a chat answer stands under its question."""
    join = "\n" if args.chat else ""
    return "\n\n".join(f"{prompt}{join}{sample.text}" for sample in output.outputs)
