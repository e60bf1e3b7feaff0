"""The GPU's engine against the CPU's, token by token in fp32, and graphs against eager steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.support.draw_margins import Watch, differences, watch
from tests.support.torch_engine import LENGTH, finish, least_blocks, tiny_model, tokens
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.request import EngineRequest
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.executor import TorchExecutor
from thranite.sampling_params import TokenParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

Outputs = dict[tuple[str, int], list[int]]


def engine_on(device: str, name: str, *, eager: bool = False, **changes: Any) -> Engine:
    spec, model = tiny_model(name, "float32")
    fields: dict[str, Any] = {
        "layout": plan_kv_layout(spec, 16, "float32"),
        "num_blocks": 256,
        "vocab_size": spec.vocab_size,
        "max_model_len": LENGTH,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 64,
        "watermark": 0.0,
    }
    settings = EngineSettings(**{**fields, **changes})
    if device == "cpu":
        return Engine(settings, TorchExecutor(model.cpu(), spec, settings, torch.device("cpu")))
    target = torch.device("cuda", 0)
    executor = CudaExecutor(model.to(target), spec, settings, target, 16, eager=eager)
    executor.capture()
    return Engine(settings, executor)


def workload() -> list[EngineRequest]:
    import random

    rng = random.Random(5)
    shared = [rng.randrange(131) for _ in range(40)]
    requests = []
    for index in range(24):
        prompt = shared[: rng.randrange(41)] + [rng.randrange(131) for _ in range(rng.randrange(1, 20))]
        params = TokenParams(
            max_tokens=rng.randrange(1, 30),
            seed=rng.randrange(1000),
            n=rng.choice([1, 1, 3]),
            temperature=rng.choice([0.0, 0.8]),
            top_p=rng.choice([1.0, 0.8]),
            top_k=rng.choice([0, 11]),
            min_p=rng.choice([0.0, 0.02]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.5]),
            bad_words=rng.choice([(), ((1, 2), (3,))]),
            eos_token_ids=(5,),
            min_tokens=rng.choice([0, 3]),
            logprobs=rng.choice([None, 2]),
            prompt_logprobs=rng.choice([None, None, 1]),
        )
        requests.append(EngineRequest(f"r{index}", tuple(prompt), params))
    return requests


def outputs(engine: Engine) -> Outputs:
    got = {key: tokens(deltas) for key, deltas in finish(engine, workload()).items()}
    engine.close()
    return got


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def scored(engine: Engine) -> list[float]:
    """Logprobs of a fixed text, as a prompt and as greedy output."""
    prompt = tuple((7 * i * i + 3 * i) % 131 for i in range(80))
    request = EngineRequest("r", prompt, TokenParams(12, seed=0, temperature=0.0, logprobs=0, prompt_logprobs=0))
    deltas = finish(engine, [request])["r", 0]
    engine.close()
    scores = [s.logprob for s in deltas[0].prompt_logprobs or () if s is not None]
    return scores + [s.logprob for delta in deltas for s in delta.logprobs or ()]


@pytest.mark.parametrize("chunk", [64, 96, 13])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_logprobs_equal_the_cpus(name: str, chunk: int) -> None:
    want = scored(engine_on("cpu", name))
    for eager in (False, True):
        got = scored(engine_on("cuda", name, eager=eager, max_num_batched_tokens=chunk))
        assert len(got) == len(want) == 79 + 12
        worst = max(abs(a - b) for a, b in zip(got, want, strict=True))
        print(f"{name}, chunk {chunk}, {'eager' if eager else 'graphs'}: worst logprob difference {worst:.1e}")
        assert worst < 2e-3


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": {"eager": True},
    "overlap": {"overlap": True},
    "small chunks": {"overlap": True, "max_num_batched_tokens": 7},
    "few pages": {"overlap": True, "num_blocks": 0},  # as few as an engine accepts, and four
}


def settings_of(name: str, configuration: str) -> dict[str, Any]:
    changes = dict(CONFIGURATIONS[configuration])
    if "num_blocks" in changes:
        changes["num_blocks"] = least_blocks(name, 16, 64, "float32") + 4
    return changes


def watched(engine: Engine) -> tuple[Outputs, Watch]:
    kept = watch(engine)
    return outputs(engine), kept


@pytest.fixture(scope="module")
def cpu() -> Callable[[str], tuple[Outputs, Watch]]:
    return cache(lambda name: watched(engine_on("cpu", name)))


@pytest.mark.parametrize("configuration", [*CONFIGURATIONS])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_equal_the_cpus(cpu: Callable[[str], tuple[Outputs, Watch]], name: str, configuration: str) -> None:
    """Sums round differently in fp32, so a token may differ where the CPU's own draw was a near tie: nowhere else."""
    want, expected = cpu(name)
    got = outputs(engine_on("cuda", name, **settings_of(name, configuration)))
    if got == want:
        return
    again, actual = watched(engine_on("cuda", name, **settings_of(name, configuration)))
    assert again == got, "the tokens depend on timing: another run, which waits for the device, gives others"
    prompts = {r.request_id: (r.params.seed, len(r.prompt_token_ids)) for r in workload()}
    found = differences(want, got, prompts, (expected, actual))
    by_name = {r.request_id: r.params for r in workload()}
    for each in found:
        print(each, by_name[each.sequence[0]])
    assert all(each.excused for each in found)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_overlap_changes_no_token(name: str) -> None:
    """Late bitmasks (bad words of two tokens), stop ids, minimal lengths, forks; and requests cut short from outside
    while a step of theirs is in flight, as stop strings do."""
    plain, overlapped = (cut_short(engine_on("cuda", name, overlap=overlap)) for overlap in (False, True))
    assert plain == overlapped


def cut_short(engine: Engine) -> Outputs:
    """Every third request is aborted once a sample of it ends in one of three pairs of tokens."""
    for request in workload():
        engine.add(request)
    texts: Outputs = {}
    stopped: set[str] = set()
    while engine.has_work:
        for delta in engine.step():
            if delta.request_id in stopped:
                continue
            text = texts.setdefault((delta.request_id, delta.index), [])
            for token in delta.token_ids:
                text.append(token)
                if int(delta.request_id[1:]) % 3 == 0 and len(text) > 1 and (text[-2] + text[-1]) % 4 == 0:
                    stopped.add(delta.request_id)
                    engine.abort(delta.request_id)
                    break
    engine.check_integrity()
    engine.close()
    assert stopped
    return texts
