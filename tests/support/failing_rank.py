"""`python -m tests.support.failing_rank …fds`: a real rank that raises at a step."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from thranite.engine.plan import Bitmasks, Executor, StepPlan, StepResult
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.rank_process import StageName, build_executor, main

STEP = 20
FAILING_COMMAND = (sys.executable, "-m", "tests.support.failing_rank")


class FailingExecutor:
    """A real one, up to step STEP."""

    def __init__(self, real: Executor) -> None:
        self._real = real

    def launch(self, plan: StepPlan) -> None:
        if plan.step >= STEP:
            if torch.cuda.is_initialized():
                torch.zeros(1, device="cuda")[torch.tensor([7], device="cuda")].cpu()  # an assertion on the device
            raise ValueError("this rank has had enough")
        self._real.launch(plan)

    def sample(self, masks: Bitmasks) -> None:
        self._real.sample(masks)

    def collect(self) -> StepResult:
        return self._real.collect()

    def prepare(self) -> bool:
        return self._real.prepare()

    def sleep(self) -> int:
        return self._real.sleep()

    def wake(self) -> int:
        return self._real.wake()

    def close(self) -> None:
        self._real.close()


def build(start: RankStart, progress: StageName, arrived: Callable[[], None]) -> Executor:
    return FailingExecutor(build_executor(start, progress, arrived))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], build))
