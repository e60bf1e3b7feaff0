from __future__ import annotations

from thranite.supervisor.stall import SILENCE_SECONDS, StallWatch


class Watched:
    """A StallWatch whose clock is advanced in ticks of 0.1 s."""

    def __init__(self, timeout: float | None = None) -> None:
        self.now = 1000.0
        self.watch = StallWatch(timeout, self.now)

    def wait(self, seconds: float, beat: tuple[float, float] | None = None) -> str | None:
        """Let time pass, with `beat` (busy, allowed) repeated at each tick if given."""
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.watch.advance(self.now)
            if beat is not None:
                self.watch.heartbeat(*beat)
        return self.watch.verdict()


def test_an_idle_engine_never_hangs() -> None:
    assert Watched(1.0).wait(100, beat=(0.0, 10.0)) is None


def test_a_step_may_take_what_is_allowed() -> None:
    watched = Watched()
    watched.watch.heartbeat(11.9, 12.0)
    assert watched.watch.verdict() is None
    watched.watch.heartbeat(12.1, 12.0)
    assert "no step finished for 12.1 s" in str(watched.watch.verdict())
    watched.watch.heartbeat(0.1, 12.0)
    assert watched.watch.verdict() is None


def test_busy_time_goes_on_without_heartbeats() -> None:
    watched = Watched()
    watched.watch.heartbeat(5.0, 10.0)
    assert watched.wait(4.8) is None
    assert "no step finished" in str(watched.wait(0.5))


def test_silence_counts_even_when_idle() -> None:
    watched = Watched()
    watched.watch.heartbeat(0.0, 600.0)
    assert watched.wait(SILENCE_SECONDS - 0.2) is None
    assert "no sign of life" in str(watched.wait(0.5))


def test_the_override_is_of_steps_alone() -> None:
    """To wake may take longer than any step."""
    watched = Watched(timeout=2.0)
    watched.watch.heartbeat(200.0, 300.0, in_step=False)
    assert watched.watch.verdict() is None
    watched.watch.heartbeat(301.0, 300.0, in_step=False)
    assert watched.watch.verdict() == "sleep, waking or a preparation went on for 301.0 s; 300.0 s are allowed"
    watched.watch.heartbeat(2.1, 300.0)
    assert watched.watch.verdict() == "no step finished for 2.1 s while work was waiting; 2.0 s are allowed"


def test_the_override_replaces_both_limits() -> None:
    watched = Watched(timeout=2.0)
    watched.watch.heartbeat(2.1, 600.0)
    assert watched.watch.verdict() is not None
    silent = Watched(timeout=30.0)
    silent.watch.heartbeat(0.0, 600.0)
    assert silent.wait(29) is None
    assert silent.wait(2) is not None


def test_a_supervisor_that_was_stopped_itself_blames_nobody() -> None:
    watched = Watched()
    watched.watch.heartbeat(0.5, 10.0)
    watched.watch.advance(watched.now + 3600)
    assert watched.watch.verdict() is None
