"""`LLM` over real ranks: the same outputs as over one, and the ways to lose a rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.support.failing_rank import FAILING_COMMAND
from tests.support.rank_models import OPTIONS, rank_model, rank_pids
from tests.support.torch_engine import CONFIGS, LENGTH, finish, tokens
from tests.support.waiting import wait_for
from thranite import LLM, SamplingParams
from thranite.errors import ConfigError, EngineDead, InvalidRequest, Rejected
from thranite.outputs import CompletionOutput, RequestOutput
from thranite.parallel import rank_child
from thranite.request import EngineRequest
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_graphs import DecodeGraphs
from thranite.runner.cuda_mixed_graphs import MixedGraphs
from thranite.runner.device import check_gpus
from thranite.sampling_params import TokenParams

PROMPTS: list[Any] = [{"prompt_token_ids": [(i * i + salt) % 131 for i in range(40 + salt)]} for salt in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return rank_model(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks import what the tests do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu2)])
def device(request: pytest.FixtureRequest) -> str:
    """The tests are the same on two GPUs (make gpu2-test)."""
    return str(request.param)


def make(model: str, size: int, device: str, **options: Any) -> LLM:
    fields = {**OPTIONS, "device": device, "kv_cache_memory_bytes": 2**22}  # a GPU's memory is a million tiny pages
    return LLM(model, tensor_parallel_size=size, **{**fields, **options})


@pytest.fixture(scope="module")
def pair(model: str, device: str) -> Iterator[LLM]:
    llm = make(model, 2, device, kv_cache_memory_bytes=2**18)
    yield llm
    llm.close()


RANK = r"rank 1 \(pid \d+, (cpu|cuda:1, .*)\)"


def params(**changes: Any) -> SamplingParams:
    fields = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**{**fields, **changes})


MIXED = [
    params(logprobs=2, prompt_logprobs=1),
    params(temperature=0.9, seed=3, n=3, top_p=0.8),
    params(temperature=1.0, seed=5, top_k=7, repetition_penalty=1.2, presence_penalty=0.3, logit_bias={7: 2.0}),
    params(temperature=1.0, seed=6, min_p=0.05, allowed_token_ids=list(range(40))),
    params(temperature=0.5, seed=7, min_tokens=5, stop_token_ids=[9, 10]),
]


def facts(outputs: list[RequestOutput]) -> list[Any]:
    """Everything but floats."""
    found: list[Any] = []
    for output in outputs:
        found.append([(o.token_ids, o.finish_reason, o.stop_reason) for o in output.outputs])
        for score in [s for s in output.prompt_logprobs or () if s] + [
            s for o in output.outputs for s in o.logprobs or ()
        ]:
            found.append((score.token_id, score.rank, [token for token, _ in score.top]))
    return found


def test_every_feature_as_over_one_rank(pair: LLM, model: str, device: str) -> None:
    """Chunked prompts, the prefix cache, forks, penalties, logprobs, and a cache so small that sequences are
    preempted."""
    alone = make(model, 1, device, kv_cache_memory_bytes=2**19)
    for _ in range(2):  # the second time from the prefix cache
        want, got = alone.generate(PROMPTS, MIXED), pair.generate(PROMPTS, MIXED)
        assert facts(got) == facts(want)
        for mine, theirs in zip(got[0].outputs[0].logprobs or (), want[0].outputs[0].logprobs or (), strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    long = params(max_tokens=120)
    assert facts(pair.generate(PROMPTS * 2, long)) == facts(alone.generate(PROMPTS * 2, long))
    assert pair.engine.stats().preemptions_total > 0
    assert pair.engine.stats().prefix_cache_hits_total > 0
    with pytest.raises(InvalidRequest):
        pair.generate({"prompt_token_ids": [5000]}, params())
    assert facts(pair.generate(PROMPTS, MIXED)) == facts(alone.generate(PROMPTS, MIXED))
    alone.close()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_as_over_one_rank(pair: LLM, model: str, device: str, pooling: Literal["last", "mean"]) -> None:
    alone = make(model, 1, device)
    want, got = alone.embed(PROMPTS, pooling=pooling), pair.embed(PROMPTS, pooling=pooling)
    alone.close()
    for one, two in zip(want, got, strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_connections_stay_on_loopback_and_multicast_off(pair: LLM) -> None:
    [rank] = rank_pids(os.getpid())
    theirs = Path(f"/proc/{rank}/environ").read_text().split("\0")
    for name, value in {
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
    }.items():
        assert os.environ[name] == value
        assert f"{name}={value}" in theirs


def test_late_bitmasks_reach_every_rank(pair: LLM, model: str, device: str) -> None:
    """Bad words of several tokens need a mask that is made on the host after each token."""
    alone = make(model, 1, device)

    def draw(llm: LLM, bad_words: tuple[tuple[int, ...], ...]) -> list[int]:
        request = EngineRequest("r", tuple(range(30)), TokenParams(20, seed=1, bad_words=bad_words))
        return tokens(finish(llm.engine, [request])["r", 0])

    free = draw(alone, ())
    banned = (tuple(free[4:6]), tuple(free[9:11]))
    assert draw(pair, banned) == draw(alone, banned) != free
    alone.close()


def test_gemma3_as_over_one_rank_and_after_sleep(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, tied embeddings and head norms; both ranks hold its only KV head. Plain Llama is the pair's. One engine
    for both checks: most of the time is its start."""
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": LENGTH}
    directory = rank_model(tmp_path, **CONFIGS["gemma3"])
    alone = make(directory, 1, device, **options)
    want = alone.generate(PROMPTS * 2, SCORED)
    alone.close()
    launches = counted_launches(monkeypatch)
    with closing(make(directory, 2, device, **options, kv_cache_memory_bytes=SLEEPERS_BYTES[device])) as llm:
        launches.clear()
        got = llm.generate(PROMPTS * 2, SCORED)
        if device == "cuda":
            assert set(launches) == {"decode graph", "mixed graph", "eager", "eager with decodes"}
        assert [o.token_ids for o in samples(got)] == [o.token_ids for o in samples(want)]
        assert len({token for o in samples(want) for token in o.token_ids}) > 20, "tokens that repeat prove little"
        assert logprobs(got) == pytest.approx(logprobs(want), abs=1e-4)
        sleep_and_wake(llm, device, monkeypatch)


SCORED = [params(logprobs=1), params(prompt_logprobs=0), params(temperature=1.0, seed=3), params(), params()] * 2
SLEEPERS_BYTES = {"cpu": 2**20, "cuda": 2**30}  # more than all else that such an engine takes and gives


def samples(outputs: list[RequestOutput]) -> list[CompletionOutput]:
    return [sample for output in outputs for sample in output.outputs]


def logprobs(outputs: list[RequestOutput]) -> list[float]:
    prompts = [score.logprob for output in outputs for score in output.prompt_logprobs or () if score]
    return prompts + [score.logprob for sample in samples(outputs) for score in sample.logprobs or ()]


def counted_launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of this process's GPU, by the kind of step."""
    counts: Counter[str] = Counter()

    def count(owner: type, method: str, kinds: Callable[[Any], list[str]]) -> None:
        original = getattr(owner, method)

        def launch(self: Any, plan: Any, *more: Any) -> Any:
            counts.update(kinds(plan))
            return original(self, plan, *more)

        monkeypatch.setattr(owner, method, launch)

    count(DecodeGraphs, "run", lambda _: ["decode graph"])
    count(MixedGraphs, "run", lambda _: ["mixed graph"])
    count(CudaExecutor, "_launch_eager", lambda plan: ["eager", "eager with decodes"][: 1 + bool(plan.decodes)])
    return counts


def sleep_and_wake(llm: LLM, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice. Every GPU's memory is given back, and the same comes out. A rank that hangs is found out soon."""
    monkeypatch.setattr("thranite.parallel.executor.REST_SECONDS", 30.0)
    fresh = [{"prompt_token_ids": [(7 * i * i + salt) % 131 for i in range(40 + salt)]} for salt in range(5)]
    mixed = [params(logprobs=1), params(temperature=1.0, seed=5)] * 2 + [params()]
    before, used = facts(llm.generate(fresh, mixed)), used_bytes(device)
    for _ in range(2):
        llm.sleep()
        # Further ranks do what they are told after rank 0 has.
        wait_for(lambda: gave_back(used, used_bytes(device)), "every GPU's memory", 10)
        with pytest.raises(Rejected):
            llm.generate(fresh, mixed)
        llm.wake_up()
        assert facts(llm.generate(fresh, mixed)) == before
        assert used_bytes(device) == pytest.approx(used, abs=2**28)


def gave_back(before: list[int], after: list[int]) -> bool:
    return all(now < then - 0.9 * 2**30 for then, now in zip(before, after, strict=True))


def used_bytes(device: str) -> list[int]:
    """Of each GPU, by whatever process; of none on the CPU."""
    memory = [torch.cuda.mem_get_info(index) for index in range(2 if device == "cuda" else 0)]
    return [total - free for free, total in memory]


def after(seconds: float, action: Any) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def generate_for_ever(llm: LLM) -> None:
    while True:
        llm.generate(PROMPTS, params(max_tokens=400))


def lose_a_rank(llm: LLM, said: str, action: Any, within: float) -> None:
    """`action` strikes in mid-generation; the cause is raised in time, and again by whoever goes on."""
    struck: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        action(rank_pids(os.getpid())[0])

    after(0.5, strike)
    with pytest.raises(EngineDead, match=said):
        generate_for_ever(llm)
    assert time.monotonic() - struck[0] < within
    with pytest.raises(EngineDead, match=said):
        llm.generate(PROMPTS, params())
    assert rank_pids(os.getpid()) == []


def test_a_stopped_rank_is_a_hang(pair: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of the pair. The stall rule gives a step at least 10 s; here 3."""
    monkeypatch.setattr("thranite.engine.step_time.MIN_ALLOWED_SECONDS", 3.0)
    said = rf"the engine hangs: no step finished for .*; {RANK} gives no sign of life"
    lose_a_rank(pair, said, lambda pid: os.kill(pid, signal.SIGSTOP), within=3.0 + 5.0)


def test_a_killed_rank(model: str, device: str) -> None:
    llm = make(model, 2, device)
    threads = torch.get_num_threads()
    lose_a_rank(llm, rf"{RANK} was killed by SIGKILL", lambda pid: os.kill(pid, signal.SIGKILL), 5.0)
    llm.close()
    assert torch.get_num_threads() == threads == 1


def test_a_rank_that_raises(
    model: str, device: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_child, "RANK_COMMAND", FAILING_COMMAND)
    llm = make(model, 2, device)
    what = {"cpu": "ValueError: this rank has had enough", "cuda": ".*Error: CUDA error: device-side assert"}[device]
    began = time.monotonic()
    with pytest.raises(EngineDead, match=f"{RANK} failed: {what}"):
        llm.generate(PROMPTS, params(max_tokens=60))
    assert time.monotonic() - began < 5.0
    assert "failing_rank.py" in capfd.readouterr().err  # its traceback
    llm.close()


def test_the_null_device_pretends_its_ranks_too(model: str) -> None:
    llm = make(model, 2, "null", load_format="auto")
    [output] = llm.generate(PROMPTS[:1], params())
    assert len(output.outputs[0].token_ids) == 20
    assert rank_pids(os.getpid()) == []
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        make(model, 3, "null")


def test_impossible_sizes_are_refused_before_anything_starts(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        make(model, 3, "cpu")
    smollm2 = rank_model(tmp_path, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    for size in (2, 4):
        with pytest.raises(ConfigError, match="can be split into: 1, 3"):
            make(smollm2, size, "cpu")
    assert rank_pids(os.getpid()) == []


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    check_gpus(3, [1, 2, 4, 8])
    with pytest.raises(ConfigError, match=r"size 4: torch sees 3 GPUs\s+hint: possible here: 1, 2$"):
        check_gpus(4, [1, 2, 4, 8])


def test_gpus_that_torch_does_not_see(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are started for the driver's GPUs before torch is there to ask; they end, and others take their place."""
    monkeypatch.setattr("thranite.parallel.rank_zero.gpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    llm = make(model, 2, "auto")
    [output] = llm.generate(PROMPTS[:1], params(max_tokens=3))
    assert len(output.outputs[0].token_ids) == 3
    assert len(rank_pids(os.getpid())) == 1
    llm.close()


def test_ranks_are_started_without_torch() -> None:
    code = "import sys, thranite.parallel.rank_zero; sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )


def test_a_rank_that_cannot_load(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 would wait for it to come."""
    monkeypatch.setattr(rank_child, "RANK_COMMAND", (sys.executable, "-m", "tests.support.fake_rank", "die-loading"))
    with pytest.raises(EngineDead, match=r"rank 1 .* was killed by SIGKILL"):
        make(model, 2, "cpu")
    assert rank_pids(os.getpid()) == []
