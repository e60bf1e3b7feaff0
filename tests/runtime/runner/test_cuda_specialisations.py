"""Once an engine on a GPU is ready, nothing that it can be asked for needs another variant of a kernel."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.torch_engine import GEMMA3, LENGTH, LLAMA
from thranite.bench.shapes import LLAMA_8B, QWEN3_06B
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.layers.fused import FUSED_ROWS
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.request import EngineRequest
from thranite.runner import cuda_warm_up
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite.sampling_params import TokenParams
from thranite_kernels.hopper_gemm import ROW_BLOCKS
from thranite_kernels.target import FUSED_BOUNDS, Target
from thranite_kernels.variant import Variant, representative

LONG = 40_960
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_k": 3, "logprobs": 0},
    {"min_p": 0.05, "logprobs": 5},
    {"top_p": 0.9, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.1, "logprobs": 5},
    {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"logit_bias": ((5, 3.0),)},
    {"top_p": 0.5, "allowed_token_ids": tuple(range(100))},
    {"bad_words": ((3,), (1, 2)), "top_k": 20},
    {"min_tokens": 2, "eos_token_ids": (1,), "stop_token_ids": (2,)},
    {"prompt_logprobs": 2},
    {"prompt_logprobs": 0, "top_p": 0.9},
    {"n": 4},
    {"n": 4, "min_p": 0.1, "logprobs": 20},
    {"pooling": "mean"},
    {"pooling": "last"},
)  # fmt: skip
EDGES = sorted({1, *(count + change for count in (16, 32, 48, 64, 128, 256, 512, 1024) for change in (-1, 0, 1))})


Variants = dict[Variant, None]


class Ready:
    """An engine on a pretended GPU. `missing`: variants that came after Ready, which a GPU would compile then."""

    def __init__(
        self, launches: Variants, config: dict[str, Any], dtype: str, *, eager: bool = False, **changes: Any
    ) -> None:
        spec = load_spec(config, dtype=dtype, max_model_len=changes["max_model_len"])
        fields: dict[str, Any] = {
            "layout": plan_kv_layout(spec, 64, changes.pop("kv_dtype", dtype)),
            "num_blocks": 8192,
            "vocab_size": spec.vocab_size,
            "max_num_seqs": 1024,
            "max_num_batched_tokens": 8192,
        }
        settings = EngineSettings(**{**fields, **changes})
        model = Decoder(spec, getattr(torch, dtype), DEVICE)
        executor = CudaExecutor(model, spec, settings, DEVICE, 256, eager=eager)
        executor.capture_graphs()
        executor.warm_up()
        self.executor = executor
        self.engine, self._launches, self._vocab_size = Engine(settings, executor), launches, spec.vocab_size
        self._ready = set(launches)
        self._numbers = iter(range(10**9))

    @property
    def missing(self) -> list[Variant]:
        return [key for key in self._launches if key not in self._ready]

    def run(self, lengths: Sequence[int], options: Sequence[dict[str, Any]] = ({},), max_tokens: int = 3) -> None:
        """Prompts of these lengths at once, none sharing a prefix; options in turns."""
        for index, length in enumerate(lengths):
            ids = random.Random(next(self._numbers)).choices(range(self._vocab_size), k=length)
            params = TokenParams(**{"max_tokens": max_tokens, "seed": index, **options[index % len(options)]})
            self.engine.add(EngineRequest(f"{next(self._numbers)}", tuple(ids), params))
        while self.engine.has_work:
            self.engine.step()


@pytest.fixture
def gpu() -> Iterator[Variants]:
    """An H200."""
    with pretended_gpu(Target(90, 132)) as variants:
        yield variants


SHALLOW = {
    "llama-8b": {**LLAMA_8B, "num_hidden_layers": 2},
    "qwen3-0.6b": {**QWEN3_06B, "num_hidden_layers": 2},
}


@pytest.mark.parametrize(("name", "overlap", "later"), [("llama-8b", True, 26), ("qwen3-0.6b", False, 37)])
def test_no_variant_is_new_after_ready(gpu: Variants, name: str, overlap: bool, later: int) -> None:
    ready = Ready(gpu, SHALLOW[name], "bfloat16", max_model_len=LONG, overlap=overlap)
    assert gpu
    ready.run([32_768, 16_385, 16_384, 16_383], OPTIONS)
    for length in (1, 2, *EDGES):
        ready.run([length])
        assert not ready.missing, length
    for rows in EDGES:
        ready.run([1] * min(rows, 1024), max_tokens=2)
        assert not ready.missing, rows
    for option in OPTIONS:
        for lengths in ([1], [15, 16, 17, 513, 700]):
            ready.run(lengths, [option])
            assert not ready.missing, (option, lengths)
    captured = 0
    while ready.engine.prepare():
        captured += 1
    assert captured == later
    for rows in EDGES:
        ready.run([1] * min(rows, 1024), max_tokens=2)
    assert not ready.missing


@pytest.mark.parametrize(
    ("config", "dtype", "changes"),
    [
        (LLAMA, "bfloat16", {}),
        (LLAMA, "float32", {}),
        (GEMMA3, "bfloat16", {}),
        (LLAMA, "bfloat16", {"max_num_seqs": 1}),
        (LLAMA, "bfloat16", {"max_num_seqs": 1, "eager": True}),
        (GEMMA3, "bfloat16", {"max_num_batched_tokens": 7}),
        (LLAMA, "bfloat16", {"num_blocks": 20}),
        (LLAMA, "float16", {"kv_dtype": "bfloat16"}),
    ],
)
def test_small_models_and_small_limits(
    gpu: Variants, config: dict[str, Any], dtype: str, changes: dict[str, Any]
) -> None:
    """Odd widths, products by the kernel for few rows, windows; limits below a warm-up step's size; preemption."""
    wide = {"max_model_len": LENGTH, "max_num_seqs": 40, "max_num_batched_tokens": 2048, "overlap": True}
    ready = Ready(gpu, config, dtype, **{**wide, **changes})
    options = [option for option in OPTIONS if option.get("n", 1) <= changes.get("max_num_seqs", 40)]
    ready.run([1])
    ready.run([90])
    budget = ready.engine.settings.max_num_batched_tokens
    ready.run([90] * (40 if budget > 90 else 4), options, max_tokens=5)
    for option in options:
        ready.run([1, 15, 16, 17], [option], max_tokens=2)
        assert not ready.missing, option
    if "num_blocks" in changes:
        ready.run([5] * 40, options, max_tokens=80)
        assert ready.engine.stats().preemptions_total
    assert not ready.missing


def test_fused_products_of_any_number_of_rows(gpu: Variants) -> None:
    """Without graphs, which would bring many numbers of rows before Ready."""
    ready = Ready(gpu, SHALLOW["qwen3-0.6b"], "bfloat16", max_model_len=LONG, max_num_seqs=64, eager=True)
    for rows in range(1, 300, 7):
        ready.run([rows], max_tokens=1)
        assert not ready.missing, rows
    reached = sum(bound in FUSED_ROWS for bound in FUSED_BOUNDS)
    kinds = Counter(variant.kernel for variant in gpu)
    assert kinds["norm_gemm_kernel"] == kinds["gemm_add_kernel"] == 2 * reached > 0


def test_products_of_any_few_rows(gpu: Variants) -> None:
    """As above; four weights of a layer, up to 16 rows two of them and the head by the streaming kernel."""
    ready = Ready(gpu, SHALLOW["llama-8b"], "bfloat16", max_model_len=LONG, max_num_seqs=64, eager=True)
    for rows in range(1, 80, 7):
        ready.run([rows], max_tokens=1)
        assert not ready.missing, rows
    kinds = Counter(variant.kernel for variant in gpu)
    assert kinds["hopper_gemm_kernel"] == 4 * len(ROW_BLOCKS) - 2
    assert kinds["stream_gemm_kernel"] == 3
    assert kinds["gated_gemm_kernel"] == 1


@pytest.mark.parametrize("eager", [True, False])
def test_a_small_head_of_few_rows(gpu: Variants, eager: bool) -> None:
    """As a rank's part of a vocabulary is: Hopper's kernel takes it, for samples and for prompts that are scored."""
    config = {**SHALLOW["llama-8b"], "vocab_size": 16384}
    ready = Ready(gpu, config, "bfloat16", max_model_len=LENGTH, max_num_seqs=64 if eager else 8, eager=eager)
    for length in (1, 16, 17, 33, 64, 65):
        ready.run([length], [{"prompt_logprobs": 2}])
        ready.run([1] * length, max_tokens=2)
        assert not ready.missing, length
    assert {dict(variant.constants)["BLOCK_M"] for variant in gpu if is_head(variant, 16384)} == set(ROW_BLOCKS[1:])


def is_head(variant: Variant, width: int) -> bool:
    return variant.kernel == "hopper_gemm_kernel" and dict(variant.constants)["N"] == width


def test_a_variant_that_was_not_warmed_up_is_noticed(gpu: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the steps of rows that are penalised and truncated at once."""
    monkeypatch.setattr(cuda_warm_up, "EVERY", cuda_warm_up.PLAIN)
    ready = Ready(gpu, LLAMA, "bfloat16", max_model_len=LENGTH, max_num_seqs=8, max_num_batched_tokens=64)
    ready.run([9], [{"top_p": 0.9}])
    ready.run([9], [{"repetition_penalty": 1.1}])
    assert not ready.missing
    ready.run([9], [{"top_p": 0.9, "repetition_penalty": 1.1}])
    left_out = {"peak_kernel", "threshold_kernel", "weigh_kernel", "draw_kernel"}
    assert {variant.kernel for variant in ready.missing} == left_out


VALUES: list[Any] = [None, 1, 2, 16, 17, 0, -16, 2**31, 2**33 + 16, 2**63, 0.5, 1.0]


@pytest.mark.parametrize("value", VALUES)
def test_arguments_are_told_apart_as_triton_does(value: Any) -> None:
    """For an integer or float argument without exceptions, and one that is not specialised."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    backend = make_backend(GPUTarget("cuda", 90, 32))
    for told in (True, False):
        parameter = SimpleNamespace(do_not_specialize=not told, do_not_specialize_on_alignment=not told)
        kind, known = native_specialize_impl(type(backend), value, False, told, told)
        ours = representative(parameter, value)
        assert native_specialize_impl(type(backend), ours, False, told, told) == (kind, known)
        for other in VALUES:
            same = native_specialize_impl(type(backend), other, False, told, told) == (kind, known)
            assert (representative(parameter, other) == ours) == same
