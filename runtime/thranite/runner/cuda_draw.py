"""A step's tokens and their log-probabilities: one piece of device memory, one copy to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thranite.request import TokenLogprobs
from thranite.runner.cuda_rows import AskingRows
from thranite.runner.sampling_transfer import HostCopies
from thranite_kernels.logprobs import Logprobs

Words = NDArray[np.int32]


class CudaDraw:
    """`tokens` int32 [R] and `scores`, for kernels to write; then `send`, later `result`.

    Words of 32 bits: tokens, log-probabilities, ranks, and for each alternative's place its log-probabilities and ids;
    each part is padded to a multiple of 16 bytes.
    """

    def __init__(self, rows: int, asking: AskingRows | None, device: torch.device) -> None:
        self._rows, self._asking = rows, asking
        self._padded = -(-rows // 4) * 4
        width = 0 if asking is None else asking.width
        self._words = torch.empty(
            self._padded * (1 if asking is None else 3 + 2 * width), dtype=torch.int32, device=device
        )
        self.tokens = self._words[:rows]
        self.scores: Logprobs | None = None
        if asking is not None:
            parts = torch.split(self._words, [self._padded] * 3 + [self._padded * width] * 2)
            values, ids = parts[3].view(torch.float32).view(-1, width), parts[4].view(-1, width)
            self.scores = Logprobs(parts[1].view(torch.float32), parts[2], values, ids)
        self._copies: HostCopies | None = None

    def send(self) -> None:
        """Begin the copy to the host."""
        self._copies = HostCopies([self._words])

    def result(self) -> tuple[list[list[int]], dict[int, tuple[TokenLogprobs, ...]]]:
        """Tokens of each row, and log-probabilities by row for those that asked. Waits for the device."""
        assert self._copies is not None
        words: Words = self._copies.wait()[0].numpy()
        tokens = words[: self._rows].tolist()
        scores = {} if self._asking is None else self._scored(words, tokens, self._asking)
        return [[token] for token in tokens], scores

    def _scored(self, words: Words, tokens: list[int], asking: AskingRows) -> dict[int, tuple[TokenLogprobs, ...]]:
        most, padded = max(asking.counts), self._padded
        rows: Any = slice(self._rows) if len(asking.rows) == self._rows else asking.rows
        chosen, ranks, values, ids = np.split(words[padded:], [padded, 2 * padded, (2 + asking.width) * padded])
        shape = (padded, asking.width)
        top_ids = ids.reshape(shape)[rows, :most].tolist()
        top_values = values.view(np.float32).reshape(shape)[rows, :most].tolist()
        tops = [tuple(zip(best, scored, strict=True)) for best, scored in zip(top_ids, top_values, strict=True)]
        if min(asking.counts) < most:
            tops = [top[:count] for top, count in zip(tops, asking.counts, strict=True)]
        entries = zip(
            asking.rows, chosen.view(np.float32)[rows].tolist(), ranks[rows].tolist(), tops, strict=True
        )  # fmt: skip
        return {row: (TokenLogprobs(tokens[row], logprob, rank, top),) for row, logprob, rank, top in entries}
