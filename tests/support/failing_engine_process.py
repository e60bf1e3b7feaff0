"""`python -m tests.support.failing_engine_process WHEN --control-fd N`: a real engine process whose further ranks fail.

WHEN: `step` (real ranks, in mid-generation) or `load` (ranks that fail before they meet rank 0).
"""

from __future__ import annotations

import sys

from tests.support.failing_rank import FAILING_COMMAND
from thranite.engine.served import build_served_engine
from thranite.parallel import rank_child
from thranite.supervisor.engine_process import main

if __name__ == "__main__":
    broken = (sys.executable, "-m", "tests.support.fake_rank", "broken-load")
    rank_child.RANK_COMMAND = {"step": FAILING_COMMAND, "load": broken}[sys.argv[1]]
    sys.exit(main(sys.argv[2:], build_served_engine))
