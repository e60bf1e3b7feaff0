"""SmolLM2's first layers in bf16 on the GPU against the fp32 CPU run, with transformers' own bf16 as the measure."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dev.gpu_model import FOLDER, unpack
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.llm import LLM
from thranite.loader.checkpoint import load_model
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.sampling_params import SamplingParams, TokenParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not (FOLDER / "tokens.json").is_file(), reason=f"{FOLDER} is missing: `make gpu-model`"),
]

HALF_A_POINT = 0.005
PROMPT = 64
Ids = list[list[int]]


@dataclass
class Subject:
    """The model directory, the sample, the two engines, and transformers in bf16."""

    directory: Path
    pieces: Ids
    cpu: LLM
    gpu: LLM
    reference: Any


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("smollm2")
    unpack(FOLDER, directory)
    options: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 16, "skip_tokenizer_init": True}
    cpu = LLM(str(directory), device="cpu", dtype="float32", kv_cache_memory_bytes=2**30, **options)
    gpu = LLM(str(directory), device="cuda", dtype="bfloat16", gpu_memory_utilization=0.1, **options)
    reference: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    reference = reference.to("cuda").eval()
    yield Subject(directory, json.loads((FOLDER / "tokens.json").read_text()), cpu, gpu, reference)
    cpu.close()
    gpu.close()
    gc.collect()


def best(llm: LLM, texts: Ids) -> list[list[int]]:
    """The likeliest token at positions 1, 2, … of each text, given what stands before."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": text} for text in texts], params)
    return [[score.top[0][0] for score in output.prompt_logprobs or () if score is not None] for output in outputs]


@torch.inference_mode()
def best_of_reference(model: Any, texts: Ids) -> list[list[int]]:
    return [model(torch.tensor([text], device="cuda")).logits[0, :-1].argmax(-1).tolist() for text in texts]


def agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def test_prompts_agree_as_transformers_does(subject: Subject) -> None:
    exact = best(subject.cpu, subject.pieces)
    ours = agreement(best(subject.gpu, subject.pieces), exact)
    theirs = agreement(best_of_reference(subject.reference, subject.pieces), exact)
    print(f"prompts: {ours:.2%} of {sum(map(len, exact))} positions agree with fp32, transformers {theirs:.2%}")
    assert theirs > 0.8
    assert ours >= theirs - HALF_A_POINT


def test_decode_steps_agree_as_transformers_does(subject: Subject) -> None:
    """The same through the decode graphs: all pieces side by side, each step's tokens replaced by the texts' own."""
    texts = torch.tensor(subject.pieces)
    ours = decoded(subject.directory, texts)
    exact = torch.tensor(best(subject.cpu, subject.pieces))[:, PROMPT - 1 :]
    theirs = torch.tensor(best_of_reference(subject.reference, subject.pieces))[:, PROMPT - 1 :]
    shares = [float((each == exact).double().mean()) for each in (ours, theirs)]
    print(f"decode: {shares[0]:.2%} of {exact.numel()} steps agree with fp32, transformers {shares[1]:.2%}")
    assert shares[1] > 0.8
    assert shares[0] >= shares[1] - HALF_A_POINT


@torch.inference_mode()
def decoded(directory: Path, texts: Tensor) -> Tensor:
    """Arg-max after PROMPT, PROMPT + 1, … tokens of each text [R, T], by one prefill a text and T - PROMPT - 1 decode
    steps of all."""
    device, (rows, length) = torch.device("cuda", 0), texts.shape
    spec = load_spec(json.loads((directory / "config.json").read_text()), dtype="bfloat16", max_model_len=1024)
    layout = plan_kv_layout(spec, 64, "bfloat16")
    pages = -(-length // 64) + 1
    settings = EngineSettings(
        layout=layout, num_blocks=1 + rows * pages, vocab_size=spec.vocab_size, max_model_len=1024, max_num_seqs=rows,
        max_num_batched_tokens=rows * PROMPT,
    )  # fmt: skip
    model = load_model(spec, directory, dtype=torch.bfloat16, device=device)
    executor = CudaExecutor(model, spec, settings, device, 16)
    executor.capture()
    params = TokenParams(max_tokens=length, seed=0, temperature=0.0)
    prompts = texts[:, :PROMPT].tolist()
    plan = StepPlan(
        0,
        starts=[SlotStart(slot, 0, params, prompt, PROMPT, 0) for slot, prompt in enumerate(prompts)],
        blocks=[BlockUpdate(0, slot, 0, range(1 + slot * pages, 1 + (slot + 1) * pages)) for slot in range(rows)],
        prefills=[Prefill(slot, 0, prompt, (slot,)) for slot, prompt in enumerate(prompts)],
    )
    found = []
    for step in range(PROMPT, length):
        executor.launch(plan)
        executor.sample({})
        found.append([tokens[0] for tokens in executor.collect().tokens])
        executor._state.last_tokens[:rows] = texts[:, step].to(device, torch.int32)
        plan = StepPlan(step, decodes=list(range(rows)))
    executor.close()
    return torch.tensor(found).T
