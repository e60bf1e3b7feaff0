"""Which way a sum takes, and what happens where GPUs cannot share memory. The kernels' own tests are elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from thranite.parallel import peer_pieces, peer_sums
from thranite.parallel.peer_pieces import PeerPieces
from thranite.parallel.peer_sums import LIMITS, Limits, PeerSums, choose, fits, limits
from thranite_kernels.all_reduce_norm import own_rows
from thranite_kernels.peer_memory import PeerMemory

TABLE = Limits(packets=1 << 10, one_shot=1 << 12, two_shot=1 << 20, norm=0)


class DictStore(dict[str, str]):
    """The other rank has spoken before."""

    def set(self, key: str, value: str, /) -> None:
        self[key] = value

    def get(self, key: str, /) -> bytes:  # type: ignore[override]
        return self[key].encode()


def memory(size: int = 2) -> PeerMemory:
    return PeerMemory.of(0, [0] * size, 0, "cpu")


@pytest.mark.parametrize(
    ("elements", "way"),
    [(2, "packets"), (512, "packets"), (511, "one-shot"), (513, "one-shot"), (2049, "two-shot"), (1 << 20, None)],
)
def test_the_way_follows_the_bytes(elements: int, way: str | None) -> None:
    """Packets are whole words of 32 bits."""
    assert choose(torch.empty(elements, dtype=torch.bfloat16), memory(), TABLE) == way


def test_what_no_kernel_sums_goes_to_the_library() -> None:
    for x in (torch.empty(0), torch.empty(8, dtype=torch.float64), torch.empty(8, 8).t()):
        assert choose(x, memory(), TABLE) is None
    most = torch.empty((2 << 20) // 4)
    assert fits("packets", most, memory())
    assert not fits("packets", torch.empty(most.numel() + 1), memory())


def test_every_group_has_limits() -> None:
    assert [limits(size) for size in (2, 3, 4, 5, 8, 16)] == [LIMITS[size] for size in (2, 4, 4, 8, 8, 8)]


@pytest.mark.parametrize(
    ("rows", "calls"),
    [
        (4, ["packets 4"]),
        (128, ["packets 128"]),
        (129, ["rows 129"]),
        (8192, ["rows 8192"]),
        (8193, ["rows 8192", "rows 1"]),
    ],
)
def test_the_way_of_a_sum_with_its_norm(rows: int, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets up to 1 MiB, rows of each rank's own above, in parts that its memory holds."""
    done: list[str] = []

    def note(said: str, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        done.append(f"{said} {len(x)}")
        return x

    for name, said in (("packet_all_reduce_norm", "packets"), ("two_shot_all_reduce_norm", "rows")):
        monkeypatch.setattr(peer_sums, name, partial(note, said))
    sums = PeerSums(PeerPieces.__new__(PeerPieces), memory())
    x = torch.empty(rows, 4096, dtype=torch.bfloat16, device="meta")
    assert sums.all_reduce_norm(x, x, x[0], 1e-6) is x
    assert done == calls


def test_a_norm_of_another_type_stands_apart() -> None:
    sums = PeerSums(PeerPieces.__new__(PeerPieces), memory())
    x = torch.empty(4, 64, dtype=torch.bfloat16, device="meta")
    assert sums.all_reduce_norm(x, x, x[0].float(), 1e-6) is None
    assert sums.all_reduce_norm(x.double(), x.double(), x[0].double(), 1e-6) is None
    wide = torch.empty(200, 20_000, dtype=torch.bfloat16, device="meta")
    assert sums.all_reduce_norm(wide, wide, wide[0], 1e-6) is None


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("rows", "parts"), [(5, [5]), (512, [512]), (1100, [512, 512, 76])])
def test_rows_of_a_stream_are_whole(rows: int, parts: list[int], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, from ranks each of which keeps the rows alone that its sums add."""
    done: list[int] = []

    def two_shots(
        x: torch.Tensor, stream: torch.Tensor, weight: torch.Tensor, eps: float, memory: PeerMemory, *, out: object
    ) -> None:
        own = own_rows(memory, len(x))
        stream.add_(x)[~own] = torch.nan
        done.append(len(x))

    monkeypatch.setattr(peer_sums, "two_shot_all_reduce_norm", two_shots)
    monkeypatch.setattr(peer_sums, "limits", lambda size: TABLE)
    x, before = torch.randn(2, rows, 512).to(torch.bfloat16)
    read = torch.tensor([rows - 1, 0, 3, 4, 3, rows // 2, rows * 2 // 3])
    total = torch.zeros(len(read), 512)
    for rank in range(size):
        sums = PeerSums(PeerPieces.__new__(PeerPieces), PeerMemory.of(rank, [0] * size, 0, "cpu", 1))
        stream = before.clone()
        sums.all_reduce_norm(x, stream, x[0], 1e-6)
        part = sums.own_part(stream, read)
        assert part is not None
        total += part
    assert done == parts * size
    assert torch.equal(total.to(torch.bfloat16), (before + x)[read])


def test_rows_of_a_stream_that_every_rank_keeps_are_not_summed() -> None:
    """After packets, and where sums have no kernel with a norm."""
    sums = PeerSums(PeerPieces.__new__(PeerPieces), memory())
    read = torch.tensor([0])
    for kept in (torch.empty(128, 4096, dtype=torch.bfloat16), torch.empty(129, 4096, dtype=torch.float64),
                 torch.empty(64, 20_000, dtype=torch.bfloat16)):  # fmt: skip
        assert sums.own_part(kept, read) is None
    assert sums.own_part(torch.empty(129, 4096, dtype=torch.bfloat16), read) is not None


def own_least(values: Sequence[int]) -> list[int]:
    return list(values)


def test_without_a_driver_sums_go_to_the_library(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank is told, so that it does not wait."""
    monkeypatch.setattr("thranite.parallel.cuda_driver.ctypes.CDLL", _no_library)
    store = DictStore({"peer-piece/1": "00" * 64})
    with caplog.at_level(logging.WARNING):
        pieces = PeerPieces(0, 2, torch.device("cuda", 0), store, own_least)
    assert pieces.memory is None
    assert store["peer-piece/0"] == peer_pieces.FAILED
    assert "rank 0 shares no memory: no CUDA driver" in caplog.text
    pieces.stop()
    pieces.close()


def test_a_rank_that_shares_nothing_keeps_all_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(peer_pieces, "CudaDriver", lambda: driver)
    monkeypatch.setattr(peer_pieces, "_multiprocessors", lambda device: 100)
    store = DictStore({"peer-piece/1": peer_pieces.FAILED})
    pieces = PeerPieces(0, 2, torch.device("cuda", 0), store, lambda values: [0])
    assert pieces.memory is None
    assert driver.done == ["allocate", "free 4096"]


def test_pieces_are_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped by its handle; given back when another rank could not map its own."""
    driver = FakeDriver()
    monkeypatch.setattr(peer_pieces, "CudaDriver", lambda: driver)
    monkeypatch.setattr(peer_pieces, "_multiprocessors", lambda device: 100)
    store = DictStore({"peer-piece/1": "07" * 64})
    pieces = PeerPieces(0, 2, torch.device("cuda", 0), store, lambda values: [min(*values, 0)])
    assert pieces.memory is None
    assert driver.done == ["allocate", f"open {'07' * 64}", "close 8192", "free 4096"]


def test_a_wrong_sum_is_found_in_step_with_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs may have come out right: they go on to the next kernel, and wait there for this rank's part."""
    calls: list[str] = []

    def kernel(name: str, factor: float, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        calls.append(name)
        return x * factor

    kernels = {way: partial(kernel, way, 3.0 if way != "packets" else 2.0) for way in peer_sums.KERNELS}
    monkeypatch.setattr(peer_sums, "KERNELS", kernels)
    norms = {way: partial(kernel, way, 1.0) for way in peer_sums.NORM_KERNELS}
    monkeypatch.setattr(peer_sums, "NORM_KERNELS", norms)
    monkeypatch.setattr(peer_sums, "_wait", lambda pieces: None)
    pieces = PeerPieces.__new__(PeerPieces)
    pieces._stop, pieces._driver, pieces._opened = torch.zeros(1, dtype=torch.int32), None, []
    agreed: list[int] = []

    def least(values: Sequence[int]) -> list[int]:
        agreed.extend(values)
        return list(values)

    assert peer_sums.prove(pieces, memory(), least) is None
    assert agreed == [0]
    assert calls == [name for name in (*kernels, *norms) for _ in "abc"]


class Kernels:
    """What the kernels give in bf16 where rank 0 brings x and rank r brings r + 1 times x: the sum is rounded, then the
    stream, then the normalised rows."""

    def __init__(self, size: int) -> None:
        self.size = size

    def summed(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        parts = ((x * (rank + 1)).float() for rank in range(self.size))
        return sum(parts, torch.zeros_like(x, dtype=torch.float32)).to(x.dtype)

    def normed(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *_: object, **__: object
    ) -> torch.Tensor:
        residual.copy_(self.summed(x).float() + residual.float())
        stream = residual.double()
        scale = 1.0 / (stream.square().mean(1, keepdim=True) + peer_sums.PROOF_EPS).sqrt()
        return (stream * scale * weight.double()).to(x.dtype)

    def unkept(self, x: torch.Tensor, residual: torch.Tensor, *others: Any, **__: object) -> torch.Tensor:
        return self.normed(x, residual.clone(), *others)

    def unsummed(self, x: torch.Tensor, *others: Any, **__: object) -> torch.Tensor:
        return self.normed(x / self.size, *others)


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], PeerSums | None]:
    """The proof with kernels that are right, but for the one that adds and normalises by packets."""

    def prove(size: int, norm: str) -> PeerSums | None:
        kernels = Kernels(size)
        norms = dict.fromkeys(peer_sums.NORM_KERNELS, kernels.normed) | {"packets with a norm": getattr(kernels, norm)}
        monkeypatch.setattr(peer_sums, "KERNELS", dict.fromkeys(peer_sums.KERNELS, kernels.summed))
        monkeypatch.setattr(peer_sums, "NORM_KERNELS", norms)
        monkeypatch.setattr(peer_sums, "_wait", lambda pieces: None)
        pieces = PeerPieces.__new__(PeerPieces)
        pieces._stop, pieces._driver, pieces._opened = torch.zeros(1, dtype=torch.int32), None, []
        return peer_sums.prove(pieces, memory(size), list)

    return prove


@pytest.mark.parametrize("size", [2, 4, 8])
def test_sums_that_are_right_are_not_refused(size: int, proof: Callable[[int, str], PeerSums | None]) -> None:
    assert isinstance(proof(size, "normed"), PeerSums)


@pytest.mark.parametrize("norm", ["unkept", "unsummed"])
def test_a_wrong_norm_alone_is_refused_by_name(
    norm: str, proof: Callable[[int, str], PeerSums | None], caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows right and the stream wrong, or a rank's part missing."""
    assert proof(2, norm) is None
    assert "rank 0: sums through peer memory that came out wrong: packets with a norm" in caplog.messages


class FakeDriver:
    def __init__(self) -> None:
        self.done: list[str] = []

    def can_access(self, device: int, peer: int) -> bool:
        return (device, peer) == (0, 1)

    def allocate(self, size: int) -> int:
        self.done.append("allocate")
        return 4096

    def handle(self, address: int) -> bytes:
        return bytes(64)

    def open(self, handle: bytes) -> int:
        self.done.append(f"open {handle.hex()}")
        return 8192

    def close(self, address: int) -> None:
        self.done.append(f"close {address}")

    def free(self, address: int) -> None:
        self.done.append(f"free {address}")


def _no_library(name: str) -> None:
    raise OSError(f"{name}: no such file")
