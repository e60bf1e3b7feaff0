"""`python -m tests.support.serve_fake BEHAVIOUR JSON`: `serve` with options from JSON.

BEHAVIOUR is a FakeEngine's; `null` for the real engine, on the null device unless JSON says another; `failing-rank` or
`broken-rank` for the real engine with ranks that fail in a step or while loading; `slow-texts` for an engine that fails
while the server process is deaf; or the path of an engine's program.
"""

from __future__ import annotations

import json
import sys

from thranite.config import EngineConfig
from thranite.supervisor.children import ChildCommands
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.main import serve

if __name__ == "__main__":
    behaviour, options = sys.argv[1], json.loads(sys.argv[2])
    fake = (sys.executable, "-m", "tests.support.fake_engine_process", behaviour)
    failing = (sys.executable, "-m", "tests.support.failing_engine_process")
    engines = {
        "null": ChildCommands().engine,
        "failing-rank": (*failing, "step"),
        "broken-rank": (*failing, "load"),
    }
    engine = (behaviour,) if behaviour.startswith("/") else engines.get(behaviour, fake)
    commands = ChildCommands(engine=engine)
    if behaviour == "slow-texts":
        deaf = (sys.executable, "-c", "import time; time.sleep(60)")
        commands = ChildCommands((*fake[:-1], "does-not-fit"), deaf)
    serve_options = {"host": "127.0.0.1", "admin_host": "127.0.0.1", "port": 0, "admin_port": 0} | options["serve"]
    sys.exit(serve(EngineConfig(**options["engine"]), ServeConfig(**serve_options), commands))
