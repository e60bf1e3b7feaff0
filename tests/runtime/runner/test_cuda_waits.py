"""While an engine on a GPU runs, its host waits for results that it sent for, and for nothing else of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.runtime.runner.test_cuda_specialisations import OPTIONS, Ready
from tests.support.no_waits import NoWaits
from tests.support.torch_engine import GEMMA3, LENGTH
from thranite.engine.plan import StepResult
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite.runner.sampling_transfer import HostCopies
from thranite_kernels.target import Target


def test_no_step_waits_for_the_device() -> None:
    """Every option, with pages that are copied as samples part, and several chunks a prompt."""
    with pretended_gpu(Target(90, 132)) as launches:
        limits: dict[str, Any] = {"max_model_len": LENGTH, "max_num_seqs": 40, "max_num_batched_tokens": 50}
        ready = Ready(launches, GEMMA3, "bfloat16", overlap=True, **limits)
        with NoWaits():
            for option in OPTIONS:
                ready.run([9, 17, 80], [option], max_tokens=4)


def test_every_step_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that sample nothing: a long prompt's chunks would else be launched all at once, their end be one
    step's, and that step look hung."""
    waits: list[HostCopies] = []
    with pretended_gpu(Target(90, 132)) as launches:
        ready = Ready(launches, GEMMA3, "bfloat16", max_model_len=LENGTH, max_num_batched_tokens=20, overlap=True)
        wait, collect = HostCopies.wait, ready.engine._executor.collect

        def waiting(copies: HostCopies) -> list[torch.Tensor]:
            waits.append(copies)
            return wait(copies)

        def collecting() -> StepResult:
            before = len(waits)
            result = collect()
            assert len(waits) > before
            return result

        monkeypatch.setattr(HostCopies, "wait", waiting)
        monkeypatch.setattr(ready.engine._executor, "collect", collecting)
        ready.run([90], max_tokens=2)
        ready.run([90], [{"pooling": "mean"}])
    assert len(waits) >= 2 * 5 + 1


@torch.inference_mode()
def test_waits_are_noticed() -> None:
    with pretended_gpu(Target(90, 132)):
        there = torch.zeros(3, device=DEVICE)
        waits = (
            lambda: there.cpu(),
            lambda: there.tolist(),
            lambda: torch.tensor([1, 2], device=DEVICE),
            lambda: there.copy_(torch.zeros(3)),
        )
        with NoWaits():
            for wait in waits:
                with pytest.raises(AssertionError, match=r"waits|would wait"):
                    wait()
