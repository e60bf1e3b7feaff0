"""The hub's end: whoever posts or closes late finds its thread gone, and nothing to wake."""

from __future__ import annotations

import socket

from thranite.ipc import control
from thranite.ipc.framing import frame
from thranite.ipc.hub import CONTROL, Hub


def test_to_post_or_to_close_after_the_threads_end_does_nothing() -> None:
    """`close` itself may find the thread gone: a tick lets it see that it is to end before it is woken."""
    ours, theirs = socket.socketpair()
    hub = Hub(
        ours,
        on_payload=lambda connection, payload: None,
        on_open=lambda connection: None,
        on_closed=lambda connection: None,
        on_tick=lambda: None,
    )
    hub.start()
    last = control.ChildFatal("the end")
    hub.post(CONTROL, last)
    hub.close(flush_seconds=60)
    hub.post(CONTROL, control.ChildFatal("too late"))
    hub.close()
    with theirs, theirs.makefile("rb") as file:
        assert file.read() == frame(control.encode(last))
