"""Memory that the GPUs of one machine share, as the kernels that sum over ranks use it.

Each rank owns one piece of it and maps everybody's. Its layout, in bytes from the piece's start:

    signals   int32 [PROGRAMS, lanes]                counts of `one_shot_all_reduce` and `two_shot_all_reduce`
    buffer    [2, PROGRAMS, CHUNK_BYTES]             their parts of x; halves take turns
    packets   int64 [2, size, PROGRAMS, PACKETS]     what each rank sent here: `packet_sum.py`

All is zero at birth. Whoever makes the memory keeps it mapped for as long as kernels run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .launch import next_power_of_2, require

PROGRAMS = 128
"""Programs of a kernel at most. All of a rank's must run at once, since they wait for peers."""
CHUNK_BYTES = 512 << 10
"""Bytes of x that one program of a signalled sum handles at most: 64 MiB a call."""
PACKETS = 4096
"""32-bit words of x that one program of a packet sum handles at most: 2 MiB a call."""
ALIGNMENT = 512
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)
"""What is summed."""


def signal_bytes(size: int) -> int:
    """Bytes of the signals, padded so that the buffer starts aligned."""
    return -(-PROGRAMS * next_power_of_2(size) * 4 // ALIGNMENT) * ALIGNMENT


def piece_bytes(size: int) -> int:
    """Bytes of one rank's piece."""
    return signal_bytes(size) + 2 * PROGRAMS * CHUNK_BYTES + 2 * size * PROGRAMS * PACKETS * 8


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """One rank's view. `programs`: how many its kernels may start, the same on every rank.

    `signals`, `buffers`, `packets`: int64 [size], the addresses of each rank's as this rank maps them. `stop`: int64
    [2], the address of an int32 in pinned host memory (not of the pieces), and whether a kernel has seen that word set:
    from then on nobody waits for peers, and what sums bring is void. `epochs`: int32 [2, PROGRAMS], this rank's own
    counts of calls, zero at birth: signalled sums' and packet sums'.
    """

    rank: int
    size: int
    programs: int
    signals: torch.Tensor
    buffers: torch.Tensor
    packets: torch.Tensor
    stop: torch.Tensor
    epochs: torch.Tensor

    def __post_init__(self) -> None:
        for table, length in ((self.signals, self.size), (self.buffers, self.size), (self.packets, self.size)):
            require(table.shape == (length,) and table.dtype == torch.int64, "peer memory: address tables")
        require(self.stop.shape == (2,) and self.stop.dtype == torch.int64, "peer memory: the stop word's address")
        require(self.epochs.shape == (2, PROGRAMS) and self.epochs.dtype == torch.int32, "peer memory: epochs")
        require(0 <= self.rank < self.size and 0 < self.programs <= PROGRAMS, "peer memory: rank, size, programs")

    @classmethod
    def of(
        cls, rank: int, pieces: list[int], stop: int, device: torch.device | str, programs: int = PROGRAMS
    ) -> PeerMemory:
        """`pieces`: the address of each rank's piece. `stop`: that of the stop word."""
        size = len(pieces)
        to_buffer, to_packets = signal_bytes(size), signal_bytes(size) + 2 * PROGRAMS * CHUNK_BYTES

        def table(addresses: list[int]) -> torch.Tensor:
            return torch.tensor(addresses, dtype=torch.int64, device=device)

        return cls(
            rank,
            size,
            programs,
            signals=table(pieces),
            buffers=table([piece + to_buffer for piece in pieces]),
            packets=table([piece + to_packets for piece in pieces]),
            stop=table([stop, 0]),
            epochs=torch.zeros(2, PROGRAMS, dtype=torch.int32, device=device),
        )


def check_norm(
    name: str, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, most: int
) -> None:
    """Refuse what kernel `name`, which takes `most` rows and adds and normalises them, would read wrongly."""
    rows, width = x.shape
    require(
        all(t.is_contiguous() and t.dtype == x.dtype for t in (x, residual, weight, out)) and x.dtype in ELEMENTS,
        f"{name}: contiguous tensors of one floating type",
    )
    require(residual.shape == x.shape == out.shape and weight.shape == (width,), f"{name}: shapes")
    require(0 < rows <= most, f"{name}: 1 to {most} rows of {width}, not {rows}")
