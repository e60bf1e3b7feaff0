"""`python -m tests.support.fake_engine_process BEHAVIOUR --control-fd N`: an engine process over a FakeEngine."""

from __future__ import annotations

import sys
import time

from tests.support.fake_stepping_engine import INFO, FakeEngine
from thranite.config import EngineConfig
from thranite.engine.client import EngineInfo
from thranite.engine.progress import Progress
from thranite.errors import DoesNotFit
from thranite.parallel.ranks import RankWatcher
from thranite.supervisor.engine_process import main

STEP_SECONDS = 0.02
MAX_REQUESTS = 400


def build(config: EngineConfig, progress: Progress, watcher: RankWatcher) -> tuple[FakeEngine, EngineInfo]:
    progress.stage("load weights")
    behaviour = sys.argv[1]
    if behaviour == "does-not-fit":
        raise DoesNotFit("weights of 99 GB exceed 1 GB", "take a smaller model")
    if behaviour == "broken-load":
        raise RuntimeError("the disk is on fire")
    if behaviour == "slow-load":
        for done in range(1, 16):
            progress.advance(done, 15)
            time.sleep(0.2)
    progress.stage("warm up")
    return FakeEngine(STEP_SECONDS, MAX_REQUESTS), INFO


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], build))
