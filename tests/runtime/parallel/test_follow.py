"""What a further rank does with rank 0's frames, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from thranite.engine.plan import Bitmasks, StepPlan, StepResult
from thranite.parallel.rank_process import follow
from thranite.parallel.step_frame import (
    Prepare,
    Sleep,
    Stop,
    Wake,
    encode_bare,
    encode_launch,
    encode_sample,
)


class Device:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def launch(self, plan: StepPlan) -> None:
        self.calls.append(f"launch {plan.step}")

    def sample(self, masks: Bitmasks) -> None:
        self.calls.append("sample")

    def collect(self) -> StepResult:
        self.calls.append("collect")
        return StepResult([])

    def prepare(self) -> bool:
        self.calls.append("prepare")
        return True

    def sleep(self) -> int:
        self.calls.append("sleep")
        return 0

    def wake(self) -> int:
        self.calls.append("wake")
        return 0

    def close(self) -> None:
        self.calls.append("close")


class Frames:
    """A ring that has had them all from the beginning. None: nothing came for a while."""

    def __init__(self, *frames: bytes | None) -> None:
        self._frames: Iterator[bytes | None] = iter(frames)
        self.handled_count = 0

    def take(self, seconds: float) -> bytes | None:
        return next(self._frames)

    def handled(self) -> None:
        self.handled_count += 1


def step(number: int) -> tuple[bytes, bytes]:
    return encode_launch(StepPlan(number, decodes=[0])), encode_sample({})


@pytest.mark.parametrize(
    ("frame", "call"),
    [(encode_bare(Prepare()), "prepare"), (encode_bare(Sleep()), "sleep"), (encode_bare(Wake()), "wake")],
)
def test_what_comes_between_steps_waits_for_those_under_way(frame: bytes, call: str) -> None:
    device, frames = Device(), Frames(*step(1), *step(2), frame, *step(3), encode_bare(Stop()))
    ring: Any = frames
    follow(device, ring)
    begun = ["launch 1", "sample", "launch 2", "sample", "collect"]
    assert device.calls == [*begun, "collect", call, "launch 3", "sample", "close"]
    assert frames.handled_count == 7


def test_an_idle_rank_waits_for_its_steps() -> None:
    device, ring = Device(), Frames(*step(1), None, *step(2), encode_bare(Stop()))
    frames: Any = ring
    follow(device, frames)
    assert device.calls == ["launch 1", "sample", "collect", "launch 2", "sample", "close"]
