"""Two ranks on pretended GPUs, one fed by the other's frames: whatever is asked for, both make the same collectives and
replay the same graphs, and no sum needs another variant of a kernel once they are ready."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.torch_engine import GEMMA3, LENGTH, LLAMA
from thranite.bench.shapes import LLAMA_8B
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.plan import Bitmasks, StepPlan, StepResult
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.parallel.pretended_ranks import PretendedRanks
from thranite.parallel.step_frame import Launch, Sample, decode, encode_launch, encode_sample
from thranite.request import EngineRequest
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite.sampling_params import TokenParams
from thranite_kernels.target import Target
from thranite_kernels.variant import Variant

SIZE, H200 = 2, Target(90, 132)
Variants = dict[Variant, None]
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top_p": 0.9, "logprobs": 3},
    {"prompt_logprobs": 2},
    {"pooling": "mean"},
    {"pooling": "last"},
    {"n": 3, "repetition_penalty": 1.1},
    {"bad_words": ((1, 2),)},
    {"min_tokens": 2, "stop_token_ids": (2,), "allowed_token_ids": (1, 2, 3)},
)


@dataclass
class Ranks:
    """Whose turn it is, and what each has done that the other must do with it."""

    done: list[list[tuple[Any, ...]]] = field(default_factory=lambda: [[], []])
    graphs: list[int] = field(default_factory=lambda: [0, 0])
    turn: int = 0

    def note(self, *what: Any) -> None:
        self.done[self.turn].append(what)

    def graph(self) -> _Graph:
        self.graphs[self.turn] += 1
        return _Graph(self, self.graphs[self.turn])


class _Graph:
    def __init__(self, ranks: Ranks, number: int) -> None:
        self._ranks, self._number = ranks, number

    def replay(self) -> None:
        self._ranks.note("replay", self._number)


class Communicator(PretendedRanks):
    """A rank's sums take their kernels, none of which waits here."""

    def __init__(self, rank: int, ranks: Ranks) -> None:
        super().__init__(rank, SIZE, DEVICE, H200.num_sms, peers=True)
        self._ranks = ranks

    def all_reduce(self, x: Tensor) -> Tensor:
        self._ranks.note("sum", *x.shape)
        return super().all_reduce(x)

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        self._ranks.note("sum and norm", *x.shape)
        return super().all_reduce_norm(x, residual, weight, eps)

    def all_gather(self, x: Tensor) -> Tensor:
        self._ranks.note("gather", *x.shape)
        return super().all_gather(x)

    def least(self, values: Sequence[int]) -> list[int]:
        self._ranks.note("least", len(values))
        return super().least(values)


class InStep:
    """Rank 0's executor, with the other's beside it: each call is held to what both did."""

    def __init__(self, executors: Sequence[CudaExecutor], ranks: Ranks) -> None:
        self._executors, self._ranks = executors, ranks

    def _on(self, rank: int, call: str, *arguments: Any) -> Any:
        self._ranks.turn = rank
        return getattr(self._executors[rank], call)(*arguments)

    def capture(self) -> None:
        for rank in range(SIZE):
            self._on(rank, "capture_graphs")
            self._on(rank, "warm_up")
        self._compare("ready")

    def launch(self, plan: StepPlan) -> None:
        frame = decode(encode_launch(plan))
        assert isinstance(frame, Launch)
        self._on(0, "launch", plan)
        self._on(1, "launch", frame.plan)
        self._compare(plan)

    def sample(self, masks: Bitmasks) -> None:
        frame = decode(encode_sample(masks))
        assert isinstance(frame, Sample)
        self._on(0, "sample", masks)
        self._on(1, "sample", frame.masks)
        self._compare(masks)

    def collect(self) -> StepResult:
        self._on(1, "collect")
        result: StepResult = self._on(0, "collect")
        self._compare("collected")
        return result

    def prepare(self) -> bool:
        more = [self._on(rank, "prepare") for rank in range(SIZE)]
        self._compare("prepared")
        return any(more)

    def sleep(self) -> int:
        return 0

    def wake(self) -> int:
        return 0

    def close(self) -> None:
        return

    def _compare(self, what: object) -> None:
        assert self._ranks.done[0] == self._ranks.done[1], what
        self._ranks.done = [[], []]


class Pair:
    def __init__(self, variants: Variants, ranks: Ranks, config: dict[str, Any], dtype: str, **changes: Any) -> None:
        spec = load_spec(config, dtype=dtype, max_model_len=changes["max_model_len"])
        executors = []
        for rank in range(SIZE):
            model = Decoder(spec, getattr(torch, dtype), DEVICE, communicator=Communicator(rank, ranks))
            settings = EngineSettings(
                layout=plan_kv_layout(model.rank_spec, 16, dtype),
                num_blocks=2000,
                vocab_size=spec.vocab_size,
                **changes,
            )
            executors.append(CudaExecutor(model, model.rank_spec, settings, DEVICE, 256))
        self.executor = InStep(executors, ranks)
        self.executor.capture()
        self.engine, self._variants = Engine(settings, self.executor), variants
        self._ready = set(variants)
        self._rng = random.Random(3)
        self._number = 0

    @property
    def missing(self) -> list[Variant]:
        return [variant for variant in self._variants if variant not in self._ready]

    def run(self, lengths: Sequence[int]) -> None:
        """Requests that come while others run; options in turns."""
        for length in lengths:
            ids = tuple(self._rng.choices(range(self.engine.settings.vocab_size), k=length))
            options = OPTIONS[self._number % len(OPTIONS)]
            self._number += 1
            params = TokenParams(**{"max_tokens": 4, "seed": self._number, "temperature": 0.0, **options})
            self.engine.add(EngineRequest(str(self._number), ids, params))
            if self._rng.random() < 0.4:
                self.engine.step()
        while self.engine.has_work:
            self.engine.step()
        self.engine.prepare()


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> Iterator[Variants]:
    with pretended_gpu(H200) as variants, monkeypatch.context() as here:
        here.setattr(torch.cuda, "CUDAGraph", ranks.graph)
        yield variants


@pytest.mark.parametrize(("config", "overlap"), [(LLAMA, True), (LLAMA, False), (GEMMA3, True)])
def test_both_ranks_do_the_same(gpu: Variants, ranks: Ranks, config: dict[str, Any], overlap: bool) -> None:
    pair = Pair(
        gpu, ranks, config, "bfloat16", max_model_len=LENGTH, max_num_seqs=8, max_num_batched_tokens=64, overlap=overlap
    )
    assert ranks.graphs[0] == ranks.graphs[1] > 0
    for _ in range(2):
        pair.run([pair._rng.choice((1, 2, 9, 40, 60, 90)) for _ in range(16)])


def test_sums_of_a_large_model_need_no_variant_after_ready(gpu: Variants, ranks: Ranks) -> None:
    config = {**LLAMA_8B, "num_hidden_layers": 1}
    pair = Pair(
        gpu, ranks, config, "bfloat16", max_model_len=12_000, max_num_seqs=140, max_num_batched_tokens=8192,
        overlap=True,
    )  # fmt: skip
    for lengths in ([1], [3, 130], [127, 128, 129, 257], [1023, 1025], [4097, 9000], [1] * 140):
        pair.run(lengths)
    assert not pair.missing
