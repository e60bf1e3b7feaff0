"""Ranks that die, fail, stop or hang, at start and in a step, as rank 0 sees it. The ranks are real processes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thranite.config import EngineConfig
from thranite.engine.plan import Bitmasks, StepPlan, StepResult
from thranite.errors import DoesNotFit, EngineDead, StartupError, ThraniteError
from thranite.layers.communicator import Alone
from thranite.parallel import rank_child
from thranite.parallel.executor import ParallelExecutor
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.ranks import Ranks, rendezvous
from thranite.parallel.step_clock import StepClock

SIZE = 4


class Peers(Alone):
    """Stands for a collective in which rank 0 is stuck until it is aborted."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True


class Device:
    """Rank 0's own: waits in step 3 as for a collective, until that is aborted."""

    def __init__(self, peers: Peers, *, waits: bool, close_seconds: float = 0.0) -> None:
        self._peers, self._waits, self._close_seconds = peers, waits, close_seconds

    def launch(self, plan: StepPlan) -> None:
        while self._waits and plan.step == 3 and not self._peers.aborted:
            time.sleep(0.01)

    def sample(self, masks: Bitmasks) -> None:
        return

    def collect(self) -> StepResult:
        return StepResult([])

    def prepare(self) -> bool:
        return False

    def sleep(self) -> int:
        return 0

    def wake(self) -> int:
        return 0

    def close(self) -> None:
        time.sleep(self._close_seconds)


class Watcher:
    def __init__(self) -> None:
        self.errors: list[ThraniteError] = []
        self.texts: list[str | None] = []

    def lost(self, error: ThraniteError) -> None:
        self.errors.append(error)

    def behind(self, text: str | None) -> None:
        self.texts.append(text)


@contextmanager
def ranks(behaviour: str, monkeypatch: pytest.MonkeyPatch, watcher: Watcher | None = None) -> Iterator[Ranks]:
    monkeypatch.setattr(rank_child, "RANK_COMMAND", (sys.executable, "-m", "tests.support.fake_rank", behaviour))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    store = rendezvous()
    start = RankStart(EngineConfig(model="m", tensor_parallel_size=SIZE), "/nowhere", 0, SIZE, str(store), 1)
    running = Ranks(start, watcher, StepClock())
    try:
        assert store.parent.stat().st_mode & 0o777 == 0o700
        yield running
    finally:
        running.close()
        assert not store.parent.exists()
        assert all(not alive(child) for child in running._children)


def alive(child: rank_child.RankChild) -> bool:
    return Path(f"/proc/{child._process.pid}").exists()


def steps(running: Ranks, *, waits: bool = True, close_seconds: float = 0.0) -> None:
    """Five steps and a close."""
    running.wait_ready()
    peers = Peers()
    running.join(peers)
    device = Device(peers, waits=waits, close_seconds=close_seconds)
    executor = ParallelExecutor(device, running, peers, StepClock(), lambda: None)
    for number in range(1, 6):
        executor.launch(StepPlan(number, decodes=[0]))
        executor.sample({})
        executor.collect()
    executor.close()


def test_ranks_follow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks("ok", monkeypatch) as running:
        steps(running, waits=False)
        assert [child.device for child in running._children] == ["fake:0"] * 3
        assert running.failure is None


def test_ranks_that_end_before_rank_0_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were told to stop, and free their devices faster than it does."""
    watcher = Watcher()
    with ranks("ok", monkeypatch, watcher) as running:
        steps(running, waits=False, close_seconds=1.5)
        assert (running.failure, watcher.errors) == (None, [])


def test_ranks_of_a_process_with_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """They inherit its numbers: beyond what select() takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"a process may open {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard == resource.RLIM_INFINITY else min(4096, hard), hard))
    held: list[int] = []
    try:
        while not held or held[-1] < 1100:
            held.append(os.dup(0))
        with ranks("ok", monkeypatch) as running:
            steps(running, waits=False)
            assert running.failure is None
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("raise", r"rank 2 \(pid \d+, fake:0\) failed: ValueError: step 3 is too much"),
        ("exit", r"rank 2 \(pid \d+, fake:0\) exited with code 5"),
    ],
)
def test_a_rank_that_fails_in_a_step_ends_the_engine(
    behaviour: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watcher = Watcher()
    with ranks(behaviour, monkeypatch, watcher) as running:
        with pytest.raises(EngineDead, match=said):
            steps(running)
        assert [str(error) for error in watcher.errors] == [str(running.failure)]
    assert (behaviour == "raise") == ("Traceback" in capfd.readouterr().err)


def test_a_killed_rank_frees_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks("hang", monkeypatch) as running:
        running.wait_ready()
        os.kill(running._children[0]._process.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(EngineDead, match=r"rank 1 \(pid \d+, fake:0\) was killed by SIGKILL"):
            steps(running)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("stop", r"rank 2 \(pid \d+, fake:0\) gives no sign of life"), ("hang", r"rank 2 \(.*\) has not finished \d")],
)
def test_a_rank_that_stands_still_is_a_hang(
    behaviour: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thranite.parallel.step_clock.FIRST_STEP_SECONDS", 3.0)
    with ranks(behaviour, monkeypatch) as running:
        running.wait_ready()
        clock = running._clock
        clock.enter()  # as if rank 0 were inside the step
        running.ring.publish(launch(3), running.check)
        began = time.monotonic()
        error = running.failure_within(10.0)
        assert 2.5 < time.monotonic() - began < 6.0
        assert isinstance(error, EngineDead)
        assert "the engine hangs: no step finished" in error.cause
        with pytest.raises(EngineDead, match=said):
            running.check()
    assert "Current thread" in capfd.readouterr().err  # the stacks of ranks that can still print


def test_a_silent_rank_is_told_to_a_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    with ranks("stop", monkeypatch, watcher) as running:
        running.wait_ready()
        running.ring.publish(launch(3), running.check)
        deadline = time.monotonic() + 10
        while not watcher.texts and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "rank 2" in str(watcher.texts)
        os.kill(running._children[1]._process.pid, signal.SIGCONT)
        while watcher.texts[-1] is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert watcher.texts[-1] is None
        assert running.failure is None


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("does-not-fit", DoesNotFit, "rank .*: weights of 99 GB exceed 1 GB\n  hint: take more ranks"),
        ("broken-load", StartupError, "rank .* failed in stage 'load weights': RuntimeError: the disk is on fire"),
        ("die-loading", EngineDead, "rank .* was killed by SIGKILL"),
    ],
)
def test_failures_at_start(behaviour: str, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks(behaviour, monkeypatch) as running, pytest.raises(kind, match=said):
        running.wait_ready()


def test_an_interrupt_inside_a_step_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Device):
        def launch(self, plan: StepPlan) -> None:
            raise KeyboardInterrupt

    with ranks("ok", monkeypatch) as running:
        running.wait_ready()
        peers = Peers()
        running.join(peers)
        executor = ParallelExecutor(Interrupted(peers, waits=False), running, peers, StepClock(), lambda: None)
        with pytest.raises(KeyboardInterrupt):
            executor.launch(StepPlan(1, decodes=[0]))
        assert peers.aborted  # else what is launched already waits for the ranks that are gone
        with pytest.raises(EngineDead, match="interrupted inside a step"):
            executor.launch(StepPlan(2, decodes=[0]))
        executor.close()


def test_rank_0_fails_while_another_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it to end by itself."""

    class Broken(Device):
        def launch(self, plan: StepPlan) -> None:
            if plan.step == 4:
                raise ValueError("an illegal address")

        def close(self) -> None:
            raise RuntimeError("an illegal address")

    class Stuck(Peers):
        """As NCCL may be after an error of the device."""

        def abort(self) -> None:
            super().abort()
            time.sleep(10.0)

    with ranks("stop", monkeypatch) as running:
        running.wait_ready()
        peers = Stuck()
        running.join(peers)
        executor = ParallelExecutor(Broken(peers, waits=False), running, peers, StepClock(), lambda: None)
        began = time.monotonic()
        executor.launch(StepPlan(3, decodes=[0]))
        with pytest.raises(ValueError, match="illegal"):
            executor.launch(StepPlan(4, decodes=[0]))
        assert time.monotonic() - began < 9.0  # the abort that sticks takes 10
        assert peers.aborted
        closed: list[str] = []
        executor._closed = lambda: closed.append("closed")
        peers.close = lambda: closed.append("left")  # type: ignore[method-assign]
        executor.close()
        assert closed == ["left", "closed"]


def test_the_loss_is_told_before_collectives_are_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the library's, and may itself wait."""
    told = threading.Event()

    class Slow(Peers):
        def abort(self) -> None:
            assert told.wait(10.0)
            self.aborted = True

    class Told(Watcher):
        def lost(self, error: ThraniteError) -> None:
            super().lost(error)
            told.set()

    with ranks("exit", monkeypatch, Told()) as running:
        running.wait_ready()
        peers = Slow()
        running.join(peers)
        running.ring.publish(launch(3), running.check)
        assert told.wait(5.0)
        running._thread.join(5.0)
        assert peers.aborted


def test_a_rank_lost_while_rank_0_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks("exit", monkeypatch) as running:
        running.wait_ready()
        running.ring.publish(launch(3), running.check)
        assert running.failure_within(5.0) is not None
        peers = Peers()
        running.join(peers)
        assert peers.aborted


def launch(step: int) -> bytes:
    from thranite.parallel.step_frame import encode_launch

    return encode_launch(StepPlan(step, decodes=[0]))
