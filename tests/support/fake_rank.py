"""`python -m tests.support.fake_rank BEHAVIOUR …fds`: a rank without torch or a model."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from thranite.engine.plan import Bitmasks, Executor, StepPlan, StepResult
from thranite.errors import DoesNotFit
from thranite.parallel import rank_process
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.rank_process import StageName, main


class FakeRank:
    """Does what BEHAVIOUR says at step 3; otherwise nothing."""

    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour

    def launch(self, plan: StepPlan) -> None:
        if plan.step != 3:
            return
        if self._behaviour == "raise":
            raise ValueError("step 3 is too much")
        if self._behaviour == "exit":
            os._exit(5)
        if self._behaviour == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._behaviour == "hang":
            time.sleep(1000)

    def sample(self, masks: Bitmasks) -> None:
        return

    def collect(self) -> StepResult:
        return StepResult([])

    def prepare(self) -> bool:
        return False

    def sleep(self) -> int:
        return 0

    def wake(self) -> int:
        return 0

    def close(self) -> None:
        return


def build(start: RankStart, progress: StageName, arrived: Callable[[], None]) -> Executor:
    progress.stage("load weights")
    behaviour = sys.argv[1]
    if behaviour == "does-not-fit":
        raise DoesNotFit("weights of 99 GB exceed 1 GB", "take more ranks")
    if behaviour == "broken-load":
        raise RuntimeError("the disk is on fire")
    if behaviour == "die-loading":
        os.kill(os.getpid(), signal.SIGKILL)
    arrived()
    return FakeRank(behaviour if start.rank == 2 else "ok")


if __name__ == "__main__":
    rank_process.device_name = lambda: "fake:0"
    sys.exit(main(sys.argv[2:], build))
