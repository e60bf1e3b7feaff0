# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code by which programs of several ranks wait for each other."""

import triton
import triton.language as tl

POLLS = tl.constexpr(256)  # between two looks at the stop word, which lies in the host's memory


@triton.jit
def stopped(stop_ptr):
    """Whether the host has called off all waiting. stop_ptr: int64 [1], the address of an int32."""
    return tl.load(tl.load(stop_ptr).to(tl.pointer_type(tl.int32)), volatile=True) != 0


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
        if polls % POLLS == 0:
            behind = tl.where(stopped(stop_ptr), 0, behind)
    tl.debug_barrier()
