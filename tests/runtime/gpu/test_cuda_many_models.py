"""Two models on one GPU, each with its share, taking turns to sleep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runtime.gpu.test_cuda_sleep import GIB, OPTIONS, PROMPTS, model, used_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.timeout(600)
def test_two_models_share_a_gpu_and_take_turns_to_sleep(tmp_path: Path) -> None:
    """The second one's plan does not count what the first holds as its own."""
    for package in ("httpx", "starlette", "uvicorn", "uvloop", "msgspec", "prometheus_client"):
        pytest.importorskip(package)  # a GPU machine may have torch alone
    from tests.runtime.supervisor.test_many_models import wait_phase
    from tests.support.running_server import running_server
    from tests.support.waiting import wait_for

    first = model(tmp_path / "model")
    added = [f"second={first}?gpu_memory_utilization=0.3&max_model_len=2048"]
    engine = {**OPTIONS, "model": first}
    with running_server(tmp_path, "null", engine, served_model_name=["first"], add_model=added) as server:
        wait_for(lambda: server.process.poll() is None and server.probe("/readyz") == 200, "ready", timeout=240)
        wait_phase(server, "second", "ready")
        blocks = [server.metric(f'thranite_kv_blocks{{model_name="{name}"}}') for name in ("first", "second")]
        assert 0.8 < blocks[1] / blocks[0] < 1.2

        def ids(name: str) -> list[int]:
            body = {"model": name, "prompt": PROMPTS[1]["prompt_token_ids"], "max_tokens": 32, "temperature": 0.0,
                    "return_token_ids": True}  # fmt: skip
            answer = server.api.post("/v1/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            found: list[int] = answer.json()["choices"][0]["token_ids"]
            return found

        before = {name: ids(name) for name in ("first", "second")}
        used = used_bytes()
        for name, other in (("first", "second"), ("second", "first")):
            asleep = server.admin.post("/sleep", json={"model": name}, timeout=120).json()
            assert used - used_bytes() > 0.2 * torch.cuda.mem_get_info()[1]
            assert ids(other) == before[other]
            awake = server.admin.post("/wake_up", json={"model": name}, timeout=120).json()
            print(f"{name}: {asleep['freed_bytes'] / GIB:.1f} GiB given back in {asleep['sleep_seconds']:.2f} s, "
                  f"awake after {awake['wake_seconds']:.2f} s")  # fmt: skip
            assert ids(name) == before[name]
