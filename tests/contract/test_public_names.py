"""Names that programs and manifests rely on. Changing one is a breaking change: say so in the changelog."""

from __future__ import annotations

import inspect

import thranite
from thranite import LLM, SamplingParams
from thranite.cli.main import COMMANDS
from thranite.errors import ExitCode

LLM_OPTIONS = {
    "model", "tokenizer", "revision", "tensor_parallel_size", "max_model_len", "dtype", "load_format", "device",
    "gpu_memory_utilization", "kv_cache_dtype", "block_size", "enable_prefix_caching", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "overlap", "seed", "skip_tokenizer_init",
}  # fmt: skip
SAMPLING = {
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "allowed_token_ids", "bad_words", "seed", "stop", "stop_token_ids", "include_stop_str_in_output",
    "min_tokens", "max_tokens", "ignore_eos", "skip_special_tokens", "detokenize", "truncate_prompt_tokens",
    "logprobs", "prompt_logprobs", "structured_outputs",
}  # fmt: skip


def test_the_package() -> None:
    assert thranite.__all__ == ["LLM", "SamplingParams", "StructuredOutputsParams", "__version__"]
    for name in thranite.__all__:
        assert getattr(thranite, name) is not None


def test_llm() -> None:
    assert set(inspect.signature(LLM).parameters) >= LLM_OPTIONS
    assert callable(LLM.generate)
    assert callable(LLM.chat)


def test_sampling_params() -> None:
    assert set(inspect.signature(SamplingParams).parameters) >= SAMPLING


def test_commands() -> None:
    assert set(COMMANDS) >= {"serve", "generate", "bench", "check", "download", "import-gguf", "drain"}


def test_exit_codes() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "CONFIG": 3,
        "MODEL_NOT_FOUND": 4,
        "UNSUPPORTED_MODEL": 5,
        "CHECKPOINT": 6,
        "DOES_NOT_FIT": 7,
        "ENGINE_DIED": 8,
        "ENGINE_STALLED": 9,
    }
