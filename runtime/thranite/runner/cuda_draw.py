"""A step's tokens and their log-probabilities: one piece of device memory, one copy to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thranite.packed_logprobs import ALTERNATIVE, HEAD, PackedLogprobs
from thranite.request import TokenLogprobs
from thranite.runner.cuda_rows import AskingRows
from thranite.runner.sampling_transfer import HostCopies
from thranite_kernels.logprobs import Logprobs, LogprobsScratch

Words = NDArray[np.int32]


class DrawBuffer:
    """`tokens` int32 [R] and `scores`, for kernels to write, step by step while the same sequences run.

    Steps follow each other on one stream: a step's copy is read from the buffer before the next one writes.

    Words of 32 bits: tokens, log-probabilities, ranks, and for each alternative's place its log-probabilities and ids;
    each part is padded to a multiple of 16 bytes.
    """

    def __init__(self, rows: int, asking: AskingRows | None, vocab_size: int, device: torch.device) -> None:
        self.rows, self.asking = rows, asking
        self.padded = -(-rows // 4) * 4
        width = 0 if asking is None else asking.width
        self.words = torch.empty(
            self.padded * (1 if asking is None else 3 + 2 * width), dtype=torch.int32, device=device
        )
        self.tokens = self.words[:rows]
        self.scores: Logprobs | None = None
        self.scratch: LogprobsScratch | None = None
        if asking is not None:
            parts = torch.split(self.words, [self.padded] * 3 + [self.padded * width] * 2)
            values, ids = parts[3].view(torch.float32).view(-1, width), parts[4].view(-1, width)
            self.scores = Logprobs(parts[1].view(torch.float32), parts[2], values, ids)
            self.scratch = LogprobsScratch.allocate(rows, vocab_size, width, device)

    def send(self) -> CudaDraw:
        """Begin the copy to the host of what the kernels launched so far write."""
        return CudaDraw(self)


class CudaDraw:
    """A step's draw on its way to the host. `tokens` int32 [R] on the device, until the next step draws."""

    def __init__(self, buffer: DrawBuffer) -> None:
        self._rows, self._padded, self._asking = buffer.rows, buffer.padded, buffer.asking
        self.tokens = buffer.tokens
        self._copies = HostCopies([buffer.words])

    def result(self) -> tuple[list[tuple[int, ...]], Mapping[int, Sequence[TokenLogprobs]]]:
        """Tokens of each row, and log-probabilities by row for those that asked. Waits for the device."""
        words: Words = self._copies.wait()[0].numpy()
        tokens: list[tuple[int, ...]] = list(zip(words[: self._rows].tolist(), strict=True))
        return tokens, {} if self._asking is None else self._scored(words, self._asking)

    def _scored(self, words: Words, asking: AskingRows) -> dict[int, PackedLogprobs]:
        padded, most = self._padded, max(asking.counts)
        rows: Any = slice(self._rows) if len(asking.rows) == self._rows else asking.rows
        heads = words[: 3 * padded].reshape(3, padded)
        values, ids = words[3 * padded :].reshape(2, padded, asking.width)
        entries = np.empty((len(asking.rows), 3 + 2 * most), np.int32)
        entries[:, :3] = heads[:, rows].T
        entries[:, 3::2] = ids[rows, :most]
        entries[:, 4::2] = values[rows, :most]
        pieces: list[bytes] = entries.view(f"V{entries.strides[0]}")[:, 0].tolist()
        if min(asking.counts) < most:
            sizes = (HEAD + count * ALTERNATIVE for count in asking.counts)
            pieces = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
        return dict(zip(asking.rows, map(PackedLogprobs, pieces, asking.counts), strict=True))
