"""An informer whose watches fail: `python -m tests.support.failing_informer URL PATIENCE STARTS`.

It tells as JSON whether the informer lived on until kopf was started so often, and what is left once it was stopped.
In a process of its own: what a cancelled kopf leaves is told of when it is collected, in whatever test that is.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import aiohttp
import kopf

from thranite_operator import credentials, informer
from thranite_operator.informer import Informer

LONGEST = 90.0  # seconds until it was started so often


def main(url: str, patience: float, starts: int) -> None:
    """`patience`: seconds until a kopf that does not end is cancelled."""
    informer.FIRST_BACKOFF = informer.LONGEST_BACKOFF = 0.1
    informer.END_SECONDS = patience
    made: list[aiohttp.ClientSession] = []
    session = credentials.session

    def noted(info: kopf.ConnectionInfo, *, connections: int, **options: Any) -> aiohttp.ClientSession:
        opened = session(info, connections=connections, **options)
        if connections == 0:  # kopf's; the others are of a client that closes them
            made.append(opened)
        return opened

    credentials.session = noted
    watching = Informer(lambda _: None, lambda: kopf.ConnectionInfo(server=url), ())
    watching.start()
    deadline = time.monotonic() + LONGEST
    while len(made) < starts and watching.alive and time.monotonic() < deadline:
        time.sleep(0.1)
    lived = watching.alive
    watching.stop(timeout=20)
    found = {"starts": len(made), "lived": lived, "stopped": not watching.alive}
    print(json.dumps(found | {"open": sum(not session.closed for session in made)}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
