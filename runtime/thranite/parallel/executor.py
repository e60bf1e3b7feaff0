"""Rank 0's `Executor`: hands every step to the other ranks first, then does its own part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thranite.engine.plan import Bitmasks, Executor, StepPlan, StepResult
from thranite.engine.step_time import PREPARE_SECONDS, REST_SECONDS
from thranite.errors import EngineDead
from thranite.layers.communicator import Communicator
from thranite.parallel.ranks import CAUSE_SECONDS, Ranks
from thranite.parallel.step_clock import StepClock
from thranite.parallel.step_frame import (
    Prepare,
    Sleep,
    Stop,
    Wake,
    encode_bare,
    encode_launch,
    encode_sample,
)


class ParallelExecutor:
    """`own`: rank 0's device. The others follow its plans, sample the same tokens by themselves and report nothing."""

    def __init__(
        self,
        own: Executor,
        ranks: Ranks,
        communicator: Communicator,
        clock: StepClock,
        closed: Callable[[], None],
    ) -> None:
        """`closed` is called at the end of `close`."""
        self._own, self._ranks, self._communicator, self._clock = own, ranks, communicator, clock
        self._closed = closed

    def launch(self, plan: StepPlan) -> None:
        self._clock.plan(plan.num_tokens)
        with self._in_step():
            self._ranks.ring.publish(encode_launch(plan), self._ranks.check)
            self._own.launch(plan)

    def sample(self, masks: Bitmasks) -> None:
        with self._in_step():
            self._ranks.ring.publish(encode_sample(masks), self._ranks.check)
            self._own.sample(masks)

    def collect(self) -> StepResult:
        with self._in_step():
            return self._own.collect()

    def prepare(self) -> bool:
        self._clock.allow(PREPARE_SECONDS)
        with self._in_step():
            self._ranks.ring.publish(encode_bare(Prepare()), self._ranks.check)
            return self._own.prepare()

    def sleep(self) -> int:
        self._clock.allow(REST_SECONDS)
        with self._in_step():
            self._ranks.ring.publish(encode_bare(Sleep()), self._ranks.check)
            return self._own.sleep()

    def wake(self) -> int:
        self._clock.allow(REST_SECONDS)
        with self._in_step():
            self._ranks.ring.publish(encode_bare(Wake()), self._ranks.check)
            return self._own.wake()

    def close(self) -> None:
        """The others are told, then everybody frees its device."""
        if self._ranks.failure is None:
            self._ranks.ring.publish(encode_bare(Stop()), self._ranks.check)
        try:
            self._own.close()
        except RuntimeError:  # torch's: after a failure the device may refuse everything
            if self._ranks.failure is None:
                raise
        self._ranks.close()
        self._communicator.close()
        self._closed()

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """A lost rank's cause is raised in place of what it makes collectives do: fail, or return without sense."""
        self._ranks.check()
        self._clock.enter()
        try:
            yield
        except Exception as error:
            failure = self._ranks.failure_within(CAUSE_SECONDS)
            if failure is None:
                self._ranks.fail(EngineDead(f"rank 0 failed: {type(error).__name__}: {error}"))
                raise
            raise failure from error
        except BaseException:
            # The others go on with a step that this rank left: nothing that follows would fit together.
            self._ranks.fail(EngineDead("the engine was interrupted inside a step"))
            raise
        finally:
            self._clock.leave()
        self._ranks.check()
