"""Record how long the real engine's steps take, for the simulation of replicas in `plant.py`.

Writes JSON: seconds of a decode step by the number of running sequences and their context, seconds of a prompt by its
length, and, to hold the simulation to, what whole open-loop runs of the engine brought (first tokens, throughput).

One thread, and the processor's time instead of the wall's: what else the machine does leaves the figures alone. In the
open-loop runs the requests' clock is that time too.

    python -m autoscaling.record_service MODEL --output autoscaling/service.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from thranite.llm import LLM
from thranite.sampling_params import SamplingParams
from thranite.text.prompt import build_request

ROWS = (1, 4, 8, 16)
CONTEXTS = (32, 128)
PROMPTS = (8, 16, 32, 64, 128)
DECODE_STEPS, REPEATS = 6, 3
MAX_MODEL_LEN = 1024
OPEN_LOOP_RATES = (0.9,)  # requests a second
OPEN_LOOP_SECONDS = 45.0
PROMPT_RANGE, OUTPUT_RANGE = (8, 64), (16, 112)  # tokens


class Recorder:
    """Drives one engine by hand and times its steps."""

    def __init__(self, llm: LLM) -> None:
        self._llm, self._random, self._count = llm, random.Random(0), 0

    def _add(self, prompt_tokens: int, output_tokens: int) -> str:
        self._count += 1
        ids = self._random.choices(range(10, self._llm.info.vocab_size), k=prompt_tokens)
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_tokens, detokenize=False)
        request = build_request(f"r{self._count}", ids, params, self._llm.info, None, seed=self._count)
        self._llm.engine.add(request)
        return request.request_id

    def _drain(self) -> None:
        while self._llm.engine.has_work:
            self._llm.engine.step()

    def _step(self) -> float:
        started = time.process_time()
        self._llm.engine.step()
        return time.process_time() - started

    def decode_seconds(self, rows: int, context: int) -> float:
        """Median seconds of a step that decodes `rows` sequences of about `context` tokens."""
        for _ in range(rows):
            self._add(context, DECODE_STEPS + 4)
        while self._llm.engine.stats().waiting_tokens:
            self._step()
        self._step()
        seconds = [self._step() for _ in range(DECODE_STEPS)]
        self._drain()
        return statistics.median(seconds)

    def prompt_seconds(self, tokens: int) -> float:
        """Median seconds from a lone prompt's arrival to its first token."""

        def once() -> float:
            self._add(tokens, 1)
            started = time.process_time()
            self._drain()
            return time.process_time() - started

        return statistics.median(once() for _ in range(REPEATS))

    def open_loop(self, rate: float, seconds: float) -> dict[str, object]:
        """Requests as they come (Poisson): [arrival, prompt, output tokens, first token after] of each."""
        draw = random.Random(f"open/{rate}")
        pending, at = [], 0.0
        while (at := at + draw.expovariate(rate)) < seconds:
            pending.append((at, draw.randint(*PROMPT_RANGE), draw.randint(*OUTPUT_RANGE)))
        pending.reverse()
        first: dict[str, float] = {}
        arrivals: dict[str, tuple[float, int, int]] = {}
        now = 0.0
        while pending or self._llm.engine.has_work:
            if not self._llm.engine.has_work:
                now = max(now, pending[-1][0])
            while pending and pending[-1][0] <= now:
                arrival, prompt, output = pending.pop()
                arrivals[self._add(prompt, output)] = (arrival, prompt, output)
            started = time.process_time()
            deltas = self._llm.engine.step()
            now += time.process_time() - started
            for delta in deltas:
                first.setdefault(delta.request_id, now)
        rows = [[round(a, 3), p, o, round(first[key] - a, 3)] for key, (a, p, o) in arrivals.items()]
        return {"requests_per_second": rate, "seconds": round(now, 2), "requests": rows}


def record(model: str, threads: int, slots: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    llm = LLM(
        model, device="cpu", dtype="float32", max_model_len=MAX_MODEL_LEN, max_num_seqs=slots, skip_tokenizer_init=True,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**30,
    )  # fmt: skip
    recorder = Recorder(llm)
    recorder.decode_seconds(2, 64)  # warm-up
    decode = [
        [rows, context, round(recorder.decode_seconds(rows, context), 5)] for rows in ROWS for context in CONTEXTS
    ]
    prompt = [[tokens, round(recorder.prompt_seconds(tokens), 5)] for tokens in PROMPTS]
    runs = [recorder.open_loop(rate, OPEN_LOOP_SECONDS) for rate in OPEN_LOOP_RATES]
    llm.close()
    return {
        "model": Path(model).name,
        "device": "cpu",
        "dtype": "float32",
        "threads": threads,
        "slots": slots,
        "decode": decode,  # [sequences, tokens of context of each, seconds of a step]
        "prompt": prompt,  # [tokens, seconds to the first token with nothing else running]
        "open_loop": runs,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model directory")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=16, help="sequences at once (default: %(default)s)")
    args = parser.parse_args(argv)
    Path(args.output).write_text(json.dumps(record(args.model, args.threads, args.slots), indent=1) + "\n")
    print(f"wrote {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
