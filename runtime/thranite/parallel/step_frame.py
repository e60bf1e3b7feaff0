"""What rank 0 tells the others, as bytes: launch this plan, sample with these bitmasks, prepare, sleep, wake, stop.

Decided purely; nothing here knows rings or processes. Every frame begins with the format's version and its kind.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from thranite.engine.plan import Bitmasks, BlockUpdate, Prefill, StepPlan
from thranite.parallel.slot_frame import read_start, write_start
from thranite.parallel.wire import FrameError, FrameReader, FrameWriter
from thranite.sampling_params import Pooling

VERSION = 1
LAUNCH, SAMPLE, STOP, SLEEP, WAKE, PREPARE = 1, 2, 3, 4, 5, 6
_HEAD = struct.Struct("<HH")  # version, kind
_NO_SCORES = -1
_POOLINGS: tuple[Pooling | None, ...] = (None, "last", "mean")


@dataclass(frozen=True, slots=True)
class Launch:
    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Sample:
    masks: Bitmasks = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """The engine closes: free the device and end."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Every step is done: give the device's memory back."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Take it again."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Every step is done: one thing that makes later steps faster, the same on every rank."""


Bare = Stop | Sleep | Wake | Prepare
Frame = Launch | Sample | Bare


_BARE: dict[int, type[Bare]] = {STOP: Stop, SLEEP: Sleep, WAKE: Wake, PREPARE: Prepare}
_KINDS = {frame: kind for kind, frame in _BARE.items()}


def encode_launch(plan: StepPlan) -> bytes:
    frame = _begin(LAUNCH)
    frame.integer(plan.step)
    frame.integers(plan.decodes)
    frame.integer(len(plan.prefills))
    for prefill in plan.prefills:
        _write_prefill(frame, prefill)
    frame.integer(len(plan.starts))
    for start in plan.starts:
        write_start(frame, start)
    frame.integers([number for b in plan.blocks for number in (b.group, b.slot, b.first, len(b.blocks))])
    frame.integers([page for b in plan.blocks for page in b.blocks])
    frame.integers([page for pair in plan.copies for page in pair])
    return frame.done()


def encode_sample(masks: Bitmasks) -> bytes:
    frame = _begin(SAMPLE)
    frame.integers(list(masks))
    for mask in masks.values():
        frame.raw(mask)
    return frame.done()


def encode_bare(frame: Bare) -> bytes:
    """One that says no more than its kind."""
    return _begin(_KINDS[type(frame)]).done()


def decode(data: bytes) -> Frame:
    """Raises FrameError for bytes of another version, kind or length."""
    frame = FrameReader(data)
    version, kind = frame.pack(_HEAD)
    if version != VERSION:
        raise FrameError(f"a frame of version {version}; this rank reads version {VERSION}")
    result: Frame
    if kind == LAUNCH:
        result = Launch(_read_plan(frame))
    elif kind == SAMPLE:
        result = Sample({slot: frame.raw() for slot in frame.integers()})
    elif kind in _BARE:
        result = _BARE[int(kind)]()
    else:
        raise FrameError(f"a frame of kind {kind}, which is none")
    frame.end()
    return result


def _begin(kind: int) -> FrameWriter:
    frame = FrameWriter()
    frame.pack(_HEAD, VERSION, kind)
    return frame


def _read_plan(frame: FrameReader) -> StepPlan:
    step, decodes = frame.integer(), frame.integers()
    prefills = [_read_prefill(frame) for _ in range(frame.integer())]
    starts = [read_start(frame) for _ in range(frame.integer())]
    heads, pages, pairs = iter(frame.integers()), iter(frame.integers()), iter(frame.integers())
    blocks = [
        BlockUpdate(group, slot, first, [next(pages) for _ in range(count)])
        for group, slot, first, count in zip(heads, heads, heads, heads, strict=True)
    ]
    return StepPlan(step, decodes, prefills, starts, blocks, list(zip(pairs, pairs, strict=True)))


def _write_prefill(frame: FrameWriter, prefill: Prefill) -> None:
    scores = _NO_SCORES if prefill.prompt_logprobs is None else prefill.prompt_logprobs
    pooling = _POOLINGS.index(prefill.pooling)
    frame.integers([prefill.slot, prefill.start, scores, pooling, *prefill.samples])
    frame.integers(prefill.token_ids)
    frame.integers(prefill.targets)


def _read_prefill(frame: FrameReader) -> Prefill:
    head = frame.integers()
    if len(head) < 4:
        raise FrameError(f"a prefill of {len(head)} numbers")
    slot, start, scores, pooling, *samples = head
    if not 0 <= pooling < len(_POOLINGS):
        raise FrameError(f"pooling {pooling}, which is none")
    scored = None if scores == _NO_SCORES else scores
    return Prefill(slot, start, frame.integers(), tuple(samples), scored, frame.integers(), _POOLINGS[pooling])
