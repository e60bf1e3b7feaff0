"""What the host knows of the rows of a step, kept while the same sequences run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thranite.runner.sampling_state import Feature, Ints, SlotFlags
from thranite.runner.sampling_transfer import upload

# Alternatives that the scoring kernels keep room for: each is a variant of theirs, compiled before Ready.
TOP_WIDTHS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class AskingRows:
    """The rows of a step that asked for log-probabilities."""

    rows: list[int]
    counts: list[int]  # alternatives of each
    wanted: Tensor  # int32 [R] on the device: alternatives of each row of the step, -1 where nothing is asked for
    width: int  # room for alternatives


@dataclass(frozen=True, slots=True)
class RunningRows:
    """`used`: the union of what the rows ask for, but MIN_TOKENS, which ends at `minimum`."""

    slots: list[int]
    where: Ints  # the same
    used: Feature
    minimum: Ints | None  # positions from which on rows may stop; None: no row has to wait
    asking: AskingRows | None

    def short(self, lengths: Ints) -> bool:
        """Whether a row is still shorter than its minimum. `lengths`: by slot."""
        return self.minimum is not None and bool((lengths[self.where] < self.minimum).any())


def running_rows(slots: Sequence[int], flags: SlotFlags, vocab_size: int, device: torch.device) -> RunningRows:
    where = np.array(slots, np.int64)
    each, minimum = flags.of(where)
    used = Feature(int(np.bitwise_or.reduce(each, initial=0)))
    asking = None
    if Feature.LOGPROBS in used:
        asks = (each & int(Feature.LOGPROBS)) != 0
        counts = np.minimum(flags.logprobs[where], vocab_size)
        most = int(counts[asks].max())
        wanted = upload(np.where(asks, counts, -1).astype(np.int32), device)
        width = next(width for width in TOP_WIDTHS if width >= most)
        asking = AskingRows(np.flatnonzero(asks).tolist(), counts[asks].tolist(), wanted, width)
    waits = Feature.MIN_TOKENS in used
    return RunningRows(list(slots), where, used & ~Feature.MIN_TOKENS, minimum if waits else None, asking)
