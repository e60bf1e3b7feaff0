from __future__ import annotations

import asyncio
import os
import signal
from contextlib import closing

from thranite.supervisor.signals import SignalInbox


def test_signals_before_anybody_listens_are_not_lost() -> None:
    before = signal.getsignal(signal.SIGTERM)
    got: list[int] = []

    async def listen(inbox: SignalInbox) -> None:
        inbox.listen(asyncio.get_running_loop(), got.append)
        assert got == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        while len(got) < 2:
            await asyncio.sleep(0.01)

    with closing(SignalInbox()) as inbox:
        os.kill(os.getpid(), signal.SIGTERM)
        asyncio.run(listen(inbox))
        inbox.ignore()
        os.kill(os.getpid(), signal.SIGTERM)
    assert got == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before
