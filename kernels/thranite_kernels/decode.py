"""Attention of one query a row by the kernel that engines use for such a batch: `stream_decode` or `paged_decode`.

`STREAM_DECODE_ROWS` decides it by the batch's rows, and `streams` says what `stream_decode` takes at all. A plan is
made for one of the two and runs through that one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .paged_decode import DecodePlan, paged_decode
from .stream_decode import StreamDecodePlan, stream_decode, streams
from .target import target_of

AnyDecodePlan = DecodePlan | StreamDecodePlan
Shape = tuple[int, int, int]
"""Heads, kv heads, head size: all that a plan's scratch depends on, on one device."""


@dataclass(slots=True)
class DecodeScratch:
    """The first plan of each kernel and shape, whose partial results and counters all later ones share, whatever their
    rows and windows: launches of one stream never overlap."""

    paged: dict[Shape, DecodePlan] = field(default_factory=dict)
    stream: dict[Shape, StreamDecodePlan] = field(default_factory=dict)


def decode_plan(
    rows: int,
    shape: Shape,
    *,
    window: int,
    itemsize: int,
    slots: int,
    device: torch.device,
    scratch: DecodeScratch,
) -> AnyDecodePlan:
    """A plan for `rows` rows, over block tables of `slots` rows and caches of `itemsize` bytes an element."""
    if streams(target_of(device), rows, shape, itemsize, slots):
        first = scratch.stream.get(shape)
        stream = StreamDecodePlan.allocate(rows, *shape, window=window, device=device, scratch=first)
        scratch.stream.setdefault(shape, stream)
        return stream
    first_paged = scratch.paged.get(shape)
    paged = DecodePlan.allocate(rows, *shape, window=window, itemsize=itemsize, device=device, scratch=first_paged)
    scratch.paged.setdefault(shape, paged)
    return paged


def decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: AnyDecodePlan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `paged_decode` and `stream_decode`."""
    if isinstance(plan, StreamDecodePlan):
        return stream_decode(q, kv, block_table, plan, scale=scale, softcap=softcap, sinks=sinks, out=out)
    return paged_decode(q, kv, block_table, plan, scale=scale, softcap=softcap, sinks=sinks, out=out)
