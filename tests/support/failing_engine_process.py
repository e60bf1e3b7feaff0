"""`python -m tests.support.failing_engine_process --control-fd N`: a real engine process whose further ranks fail."""

from __future__ import annotations

import sys

from tests.support.failing_rank import FAILING_COMMAND
from thranite.engine.served import build_served_engine
from thranite.parallel import rank_child
from thranite.supervisor.engine_process import main

if __name__ == "__main__":
    rank_child.RANK_COMMAND = FAILING_COMMAND
    sys.exit(main(sys.argv[1:], build_served_engine))
