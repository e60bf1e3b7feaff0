"""A further rank: `python -m thranite.parallel.rank_process --control-fd N --ring-fd N --wake-fd N`.

The main thread builds its part of the model and follows rank 0's steps; a second one beats, and ends the process,
whatever the main thread is doing, when rank 0 is gone.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from thranite.engine.plan import Executor
from thranite.errors import ExitCode, StartupError
from thranite.parallel.rank_messages import FromRank, RankDevice, RankFailed, RankReady, RankStart, encode
from thranite.parallel.ring import RingReader
from thranite.parallel.step_frame import Launch, Prepare, Sample, Sleep, Stop, Wake, decode

BEAT_SECONDS = 0.25
IDLE_SECONDS = 0.05  # without a frame for so long, steps under way are waited for, so that their errors show
GPU_SPIN_SECONDS = 0.0001  # a step's frames come faster than a sleeper wakes
PR_SET_PDEATHSIG = 1

BuildExecutor = Callable[[RankStart, "StageName", Callable[[], None]], Executor]


class StageName:
    """A `Progress` that remembers the stage, for the report of a failure."""

    def __init__(self) -> None:
        self.name = "start"

    def stage(self, name: str) -> None:
        self.name = name

    def advance(self, done: int, total: int) -> None:
        return

    def note(self, text: str) -> None:
        return


def main(argv: Sequence[str], build: BuildExecutor | None = None) -> int:
    """Run a rank to its end. `build`: another way to make its executor."""
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    fds = _parse_fds(argv)
    control = socket.socket(fileno=fds["control"])
    start = RankStart.decode(control.makefile("rb").readline())
    logging.basicConfig(level=logging.WARNING, format=f"rank {start.rank}: %(message)s", stream=sys.stderr)
    ring = RingReader(fds["ring"], start.rank - 1, fds["wake"], GPU_SPIN_SECONDS if start.threads is None else 0.0)
    threading.Thread(target=_beat, args=(control, ring), name="beat", daemon=True).start()
    return _run(start, control, ring, build or build_executor)


def _run(start: RankStart, control: socket.socket, ring: RingReader, build: BuildExecutor) -> int:
    progress = StageName()
    try:
        executor = build(start, progress, lambda: _send(control, RankDevice(device_name())))
    except Exception as error:  # noqa: BLE001 - every failure is reported to rank 0
        return _report(control, progress.name, error)
    gc.collect()
    gc.freeze()  # what startup made stays: later collections need not look at it
    _send(control, RankReady())
    try:
        follow(executor, ring)
    except Exception as error:  # noqa: BLE001 - as above
        return _report(control, None, error)
    return ExitCode.OK


def follow(executor: Executor, ring: RingReader) -> None:
    """Do every step that rank 0 does, until it stops."""
    under_way = 0
    while True:
        data = ring.take(IDLE_SECONDS)
        if data is None:
            while under_way:
                executor.collect()
                under_way -= 1
            continue
        frame = decode(data)
        if isinstance(frame, Launch):
            executor.launch(frame.plan)
        elif isinstance(frame, Sample):
            executor.sample(frame.masks)
            under_way += 1
            if under_way > 1:
                executor.collect()
                under_way -= 1
        elif isinstance(frame, Stop):
            executor.close()
            return
        else:
            for _ in range(under_way):
                executor.collect()
            under_way = 0
            _between_steps(executor, frame)
        ring.handled()


def _between_steps(executor: Executor, frame: Sleep | Wake | Prepare) -> None:
    """Together with rank 0, or not at all."""
    match frame:
        case Sleep():
            executor.sleep()
        case Wake():
            executor.wake()
        case Prepare():
            executor.prepare()


def build_executor(start: RankStart, progress: StageName, arrived: Callable[[], None]) -> Executor:
    """This rank's part of the model, in step with the others' building of theirs. `arrived` tells rank 0 of the device
    when this rank is about to meet the others."""
    import torch

    from thranite.engine.build import build_device, read_spec
    from thranite.parallel.place import RankPlace

    if start.threads is not None:
        torch.set_num_threads(start.threads)
    directory = Path(start.directory)
    place = RankPlace(start.rank, start.size, start.store, arrived)
    executor, _, _ = build_device(directory, read_spec(directory, start.config), start.config, progress, place)
    return executor


def device_name() -> str:
    """Which device this process uses."""
    import torch

    if not torch.cuda.is_initialized():
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}, {torch.cuda.get_device_name()}"


def _report(control: socket.socket, stage: str | None, error: Exception) -> int:
    if not isinstance(error, StartupError):
        traceback.print_exc()
    _send(control, RankFailed.of(stage, error))
    return error.exit_code if isinstance(error, StartupError) else ExitCode.ENGINE_DIED


def _send(control: socket.socket, message: FromRank) -> None:
    control.sendall(encode(message))


def _beat(control: socket.socket, ring: RingReader) -> None:
    """Rank 0 sends nothing more: what can be read is its end."""
    told = select.poll()  # not select(): rank 0's process may have so many files that it does not take the number
    told.register(control, select.POLLIN)
    ring.beat()
    while not told.poll(BEAT_SECONDS * 1000):
        ring.beat()
    os._exit(ExitCode.FAILURE)


def _end_with_parent() -> None:
    """On Linux the kernel kills this process with rank 0's, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _parse_fds(argv: Sequence[str]) -> dict[str, int]:
    parser = argparse.ArgumentParser()
    for name in ("control", "ring", "wake"):
        parser.add_argument(f"--{name}-fd", dest=name, type=int, required=True)
    return dict(vars(parser.parse_args(argv)))


def end(code: int) -> NoReturn:
    """Leave at once: what collectives' and drivers' libraries do at exit may wait for ranks that have gone before."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
