"""The reference workloads: lengths that never change, token ids that never repeat.

Lengths are drawn anew from the same seed for every run, so every run does the same work; ids are seeded by workload and
run, so no prompt repeats and no prefix is shared. All requests of a run are handed over at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from thranite.sampling_params import SamplingParams

Metric = Literal["output tok/s", "total tok/s", "ms/step"]
FIRST_ID, LAST_ID = 10, 100_000  # ids are drawn from FIRST_ID … min(vocabulary, LAST_ID) - 1
TEMPERATURE = 0.6


def _plain(index: int) -> dict[str, Any]:
    return {"temperature": TEMPERATURE}


def _every_option(index: int) -> dict[str, Any]:
    """Truncation, penalty, seed and log-probabilities in every row; every fourth row is greedy."""
    return {
        "temperature": 0.0 if index % 4 == 0 else TEMPERATURE,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": index,
        "logprobs": 5,
    }


@dataclass(frozen=True, slots=True)
class Request:
    prompt_token_ids: list[int]
    output_tokens: int


@dataclass(frozen=True)
class Workload:
    """`lengths` are (prompt, output) tokens of each request; `metric` is what the workload is judged by.

    `options`: sampling parameters of the request with that index.
    """

    name: str
    metric: Metric
    count: int
    draw_lengths: Callable[[random.Random], tuple[int, int]]
    options: Callable[[int], dict[str, Any]] = _plain

    @cached_property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        size = random.Random(0)
        return tuple(self.draw_lengths(size) for _ in range(self.count))

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self.lengths)

    @property
    def output_tokens(self) -> int:
        return sum(output for _, output in self.lengths)

    @property
    def longest_output(self) -> int:
        return max(output for _, output in self.lengths)

    @property
    def longest_sequence(self) -> int:
        return max(prompt + output for prompt, output in self.lengths)

    def requests(self, run: int, vocab_size: int) -> list[Request]:
        """The requests of run 0, 1, …"""
        text = random.Random(f"{self.name}/{run}")
        ids = range(FIRST_ID, min(vocab_size, LAST_ID))
        return [Request(text.choices(ids, k=prompt), output) for prompt, output in self.lengths]

    def batch(self, run: int, vocab_size: int, most: int | None = None) -> tuple[list[Any], list[SamplingParams]]:
        """What `LLM.generate` takes for run 0, 1, …; outputs are cut to `most` tokens."""
        requests = self.requests(run, vocab_size)
        prompts: list[Any] = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        lengths = [request.output_tokens if most is None else min(request.output_tokens, most) for request in requests]
        return prompts, [self.sampling(length, index) for index, length in enumerate(lengths)]

    def sampling(self, output_tokens: int, index: int) -> SamplingParams:
        """Of the request with that index: exactly `output_tokens` come."""
        return SamplingParams(ignore_eos=True, max_tokens=output_tokens, detokenize=False, **self.options(index))


def _mixed(size: random.Random) -> tuple[int, int]:
    prompt = size.randint(100, 1024)
    return prompt, size.randint(100, 1024)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mixed", "output tok/s", 256, _mixed),
        Workload("mixed1k", "output tok/s", 1024, _mixed),
        Workload("prefill", "total tok/s", 256, lambda size: (2048, 32)),
        Workload("decode1", "ms/step", 1, lambda size: (128, 256)),
        Workload("decode64", "ms/step", 64, lambda size: (128, 256)),
        Workload("decode64-options", "ms/step", 64, lambda size: (128, 256), _every_option),
        Workload("long", "total tok/s", 16, lambda size: (16_000, 64)),
    )
}
