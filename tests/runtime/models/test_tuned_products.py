"""Which of cuBLASLt's algorithms is taken, and when: with a library and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thranite.layers import tuned_products
from thranite.layers.cublas_lt import CublasError
from thranite.layers.tuned_products import product_by_rule, tuned_product, tuning

RULE = 1.0  # milliseconds
OTHER = 7.0  # what the test's algorithms write, to be told from the rule


class Library:
    """Its algorithms are numbers: the milliseconds that they take."""

    times: tuple[float, ...] = ()
    timed = 0
    last: float | None = None

    def __init__(self, device: torch.device) -> None:
        pass

    def products(self, rows: int, n: int, k: int, dtype: torch.dtype, most: int) -> list[float]:
        return list(self.times[:most])

    def run(self, product: float, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        Library.last = product
        return (out if add else out.zero_()).add_(OTHER + product)


def clock(run: Callable[[], object], device: torch.device) -> float:
    Library.timed += 1
    Library.last = None
    run()
    return RULE if Library.last is None else Library.last


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> type[Library]:
    Library.times, Library.timed = (), 0
    monkeypatch.setattr(tuned_products, "CublasLt", Library)
    monkeypatch.setattr(tuned_products, "milliseconds", clock)
    tuned_products._products.cache_clear()
    return Library


X, WEIGHT = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(5, 4, dtype=torch.bfloat16)


def test_the_fastest_is_taken_from_then_on() -> None:
    Library.times = (1.25, 0.5, 0.75)
    with tuning():
        taken = tuned_product(X, WEIGHT)
    assert taken is not None
    assert taken.shape == (3, 5)
    assert torch.all(taken == OTHER + 0.5)
    timed = Library.timed
    assert timed == 4
    again = tuned_product(X, WEIGHT)
    with tuning():
        third = tuned_product(X, WEIGHT)
    assert again is not None
    assert third is not None
    assert torch.equal(again, taken)
    assert torch.equal(third, taken)
    assert Library.timed == timed


def test_products_that_add_are_compared_apart() -> None:
    """With each other and with torch's own that adds, none of them to the stream."""
    stream = torch.full((3, 5), 100.0, dtype=torch.bfloat16)
    Library.times = (0.5,)
    with tuning():
        tuned_product(X, WEIGHT)
        assert Library.timed == 2
        assert tuned_product(X, WEIGHT, stream) is stream
    assert Library.timed == 4
    assert torch.all(stream == 100.0 + OTHER + 0.5)  # once
    assert tuned_product(X, WEIGHT, stream) is stream
    plain = tuned_product(X, WEIGHT)
    assert plain is not None
    assert torch.all(plain == OTHER + 0.5)
    assert Library.timed == 4


def test_a_stream_that_the_rule_adds_to_as_fast_is_left_alone() -> None:
    stream = torch.full((3, 5), 100.0, dtype=torch.bfloat16)
    Library.times = (1.0,)
    with tuning():
        assert tuned_product(X, WEIGHT, stream) is None
    assert torch.all(stream == 100.0)
    assert torch.all(product_by_rule(X, WEIGHT, stream) == 104.0)
    Library.times = (0.5,)
    with tuning():
        assert tuned_product(X[:2], WEIGHT, stream[:2]) is not None
        assert tuned_product(X[:2], WEIGHT, torch.ones(2, 10, dtype=torch.bfloat16)[:, ::2]) is None


def test_what_is_level_with_the_rule_is_left_to_it() -> None:
    Library.times = (1.0, 0.985)
    with tuning():
        assert tuned_product(X, WEIGHT) is None
    assert Library.timed == 3


def test_many_rows_are_timed_on_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On end the second is quickest, which alone is the slowest that is timed so; the last is hopeless."""
    alone, on_end = {None: 1.0, 0.5: 0.5, 0.75: 1.15, 9.0: 9.0}, {None: 1.0, 0.5: 1.1, 0.75: 0.985, 9.0: 0.1}
    counts: list[tuple[float | None, int]] = []

    def mean(clock: tuned_products.HotClock, run: Callable[[], object], count: int) -> float:
        Library.last = None
        run()
        counts.append((Library.last, count))
        return (alone if count == 1 else on_end)[Library.last]

    monkeypatch.setattr(tuned_products, "HOT_ROWS", 3)
    monkeypatch.setattr(tuned_products.HotClock, "_mean", mean)
    Library.times = (0.5, 0.75, 9.0)
    with tuning():
        taken = tuned_product(X, WEIGHT)
        assert taken is not None
        assert torch.all(taken == OTHER + 0.75)
        assert Library.timed == 0
        assert tuned_product(X[:2], WEIGHT) is not None
    assert Library.timed == 4
    assert counts == [
        *[(None, 1), (None, 20), (None, 20)],
        *[(0.5, 1), (0.5, 40), (0.5, 40)],
        *[(0.75, 1), (0.75, 18), (0.75, 18)],
        (9.0, 1),
    ]


def test_nothing_is_timed_between_steps() -> None:
    Library.times = (0.5,)
    assert tuned_product(X, WEIGHT) is None
    with tuning():
        assert tuned_product(X[:2], WEIGHT) is not None
    timed = Library.timed
    assert tuned_product(X, WEIGHT) is None
    assert Library.timed == timed


def test_other_types_and_layouts_are_left_to_the_rule() -> None:
    Library.times = (0.5,)
    with tuning():
        assert tuned_product(X.float(), WEIGHT.float()) is None
        assert tuned_product(X, WEIGHT) is not None
        assert tuned_product(torch.ones(3, 8, dtype=torch.bfloat16)[:, ::2], WEIGHT) is None


def test_without_the_library_the_rule_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> SimpleNamespace:
        raise OSError("libcublasLt.so.99: cannot open shared object file")

    monkeypatch.setattr(tuned_products, "CublasLt", missing)
    with tuning():
        assert tuned_product(X, WEIGHT) is None
    assert Library.timed == 0
    assert F.linear(X, WEIGHT).shape == (3, 5)


def test_an_algorithm_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Library.run

    def refusing(
        library: Library, product: float, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False
    ) -> Tensor:
        if product == 0.25:
            raise CublasError("cublasLtMatmul failed with cuBLAS status 15")
        return run(library, product, x, weight, out, add=add)

    monkeypatch.setattr(Library, "run", refusing)
    Library.times = (0.25, 0.5)
    with tuning():
        taken = tuned_product(X, WEIGHT)
    assert taken is not None
    assert torch.all(taken == OTHER + 0.5)


def test_a_shape_without_algorithms_is_left_to_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> list[float]:
        raise CublasError("cublasLtMatmulAlgoGetHeuristic failed with cuBLAS status 15")

    monkeypatch.setattr(Library, "products", none)
    with tuning():
        assert tuned_product(X, WEIGHT) is None
    assert Library.timed == 0


def test_the_rule_s_result_is_gone_before_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of memory counts one of them: a full step's is as large as all else."""
    order: list[str] = []

    def noted(run: Callable[[], object], device: torch.device) -> float:
        order.append("timed")
        return RULE

    def made(x: Tensor, *size: int) -> Tensor:
        order.append("made")
        return torch.empty(*size)

    monkeypatch.setattr(tuned_products, "milliseconds", noted)
    monkeypatch.setattr(Tensor, "new_empty", made)
    Library.times = (0.5,)
    with tuning():
        tuned_product(X, WEIGHT)
    assert order == ["timed", "made", "timed"]
