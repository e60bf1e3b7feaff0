"""Real ranks of which each further one raises at a step: `python -m tests.support.failing_rank …fds` is such a rank,
`python -m tests.support.failing_rank engine …` an engine process whose ranks are."""

from __future__ import annotations

import sys

from thranite.engine.plan import Bitmasks, Executor, StepPlan, StepResult
from thranite.parallel import rank_child
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.rank_process import StageName, build_executor

STEP = 20
FAILING_COMMAND = (sys.executable, "-m", "tests.support.failing_rank")


class FailingExecutor:
    """A real one, up to step STEP."""

    def __init__(self, real: Executor) -> None:
        self._real = real

    def launch(self, plan: StepPlan) -> None:
        if plan.step >= STEP:
            raise ValueError("this rank has had enough")
        self._real.launch(plan)

    def sample(self, masks: Bitmasks) -> None:
        self._real.sample(masks)

    def collect(self) -> StepResult:
        return self._real.collect()

    def close(self) -> None:
        self._real.close()


def build(start: RankStart, progress: StageName) -> Executor:
    return FailingExecutor(build_executor(start, progress))


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        from thranite.engine.served import build_served_engine
        from thranite.supervisor.engine_process import main as run_engine

        rank_child.RANK_COMMAND = FAILING_COMMAND
        sys.exit(run_engine(sys.argv[2:], build_served_engine))
    from thranite.parallel.rank_process import main as run_rank

    sys.exit(run_rank(sys.argv[1:], build))
