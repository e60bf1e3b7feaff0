"""A thread with a large stack, for a library that recurses as deep as what it is given refers to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from thranite.errors import Rejected

T = TypeVar("T")

STACK_BYTES = 1 << 30  # of addresses; memory is taken as far as the recursion goes, and ends with the thread

_starting = threading.Lock()  # the size of stacks is the process's


def on_deep_stack(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own with such a stack, and wait for it. An overflow would end the process.

    Raises what `work` does, and Rejected where no thread can be started.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            result.set_exception(error)

    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="deep stack", daemon=True).start()
        except RuntimeError as error:
            raise Rejected("the machine has no thread to spare for a grammar", "queue_full") from error
        finally:
            threading.stack_size(before)
    return result.result()
