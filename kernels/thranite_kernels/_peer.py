# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code by which programs of several ranks wait for each other."""

import triton
import triton.language as tl
from triton import knobs

LOOK = tl.constexpr(16 if knobs.runtime.interpret else 256)  # polls between two looks at this device's stop word
LOOK_FAR = tl.constexpr(64 if knobs.runtime.interpret else 1 << 17)  # and at the host's: about 0.1 s
THREADS = tl.constexpr(1024)  # of a program at most


@triton.jit
def stopped(stop_ptr, polls):
    """Whether the host has called off all waiting. stop_ptr: int64 [2], the address of the host's int32, and this
    device's own copy of what it says.

    One thread looks, and at the host's word hardly ever: reads of one line over PCIe are served one by one in 0.85 µs.
    What one program has seen there all others see here.
    """
    lanes = tl.arange(0, THREADS)
    one = lanes == 0
    found = tl.max(tl.load(stop_ptr + 1 + lanes, mask=one, other=0, volatile=True))
    if found == 0 and polls % LOOK_FAR == 0:
        there = tl.load(stop_ptr + lanes, mask=one, other=0).to(tl.pointer_type(tl.int32))
        found = tl.max(tl.load(there, mask=one, other=0, volatile=True)).to(tl.int64)
        tl.store(stop_ptr + 1, found, mask=found != 0)
    return found != 0


@triton.jit
def _behind(own, there, epoch):
    """The most that a peer's signal lacks, as a number of at most 0."""
    return tl.min(tl.where(there, tl.atomic_add(own, 0, mask=there, sem="acquire", scope="sys") - epoch, 0))


@triton.jit
def meet(
    signals_ptr,  # int64 [SIZE], the address of each rank's signals int32 [PROGRAMS, LANES]
    stop_ptr,
    program,
    epoch,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
):
    """Wait until this program of every rank has come as far. What each wrote before is then seen by all.

    All threads' stores come before the release of the few that signal, and all loads after the acquire of those that
    wait, by the barriers; release and acquire are of system scope, since peers are other GPUs.
    """
    tl.debug_barrier()
    peers = tl.arange(0, LANES)
    there = peers < SIZE
    theirs = tl.load(signals_ptr + peers, mask=there, other=0).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(theirs + program * LANES + RANK, epoch, mask=there, sem="release", scope="sys")
    own = tl.load(signals_ptr + RANK).to(tl.pointer_type(tl.int32)) + program * LANES + peers
    behind = _behind(own, there, epoch)
    polls = 0
    while behind < 0:
        behind = _behind(own, there, epoch)
        polls += 1
        if polls % LOOK == 0:
            behind = tl.where(stopped(stop_ptr, polls), 0, behind)
    tl.debug_barrier()
