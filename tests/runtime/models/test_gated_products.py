"""When gate, up and their activation are one kernel: as timed, or by a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from thranite.layers import gated_products
from thranite.layers.gated_products import gated_product
from thranite.layers.tuned_products import tuning
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.gated_gemm import TALL_ROWS
from thranite_kernels.target import Target
from thranite_kernels.variant import Variant

ONE, TALL, TWO = "gated_gemm_kernel", "tall_gated_gemm_kernel", "glu_kernel"


@pytest.fixture
def launched() -> Iterator[dict[Variant, None]]:
    with pretended_gpu(Target(90, 132)) as variants:
        yield variants


def product(rows: int, width: int = 14336, depth: int = 4096) -> bool:
    x = torch.empty(rows, depth, dtype=torch.bfloat16, device=DEVICE)
    result = gated_product(x, torch.empty(2 * width, depth, dtype=torch.bfloat16, device=DEVICE))
    assert result is None or result.shape == (rows, width)
    return result is not None


@pytest.mark.parametrize(
    ("rows", "width", "taken"),
    [(64, 14336, False), (1000, 14336, False), (1024, 14336, True), (8192, 14336, True), (1500, 7168, False)],
)
def test_untimed_it_is_for_many_rows_that_fill_the_gpu(
    launched: dict[Variant, None], rows: int, width: int, taken: bool
) -> None:
    assert product(rows, width) is taken
    assert [variant.kernel for variant in launched] == [TALL if rows >= TALL_ROWS else ONE] * taken


def test_small_weights_are_left_alone(launched: dict[Variant, None]) -> None:
    assert not product(8192, width=3072, depth=1024)


@pytest.mark.parametrize(("one", "taken"), [(0.9, True), (1.0, True), (1.01, False)])
def test_it_is_timed_once_and_taken_unless_slower(
    launched: dict[Variant, None], monkeypatch: pytest.MonkeyPatch, one: float, taken: bool
) -> None:
    timed: list[str] = []

    def stopwatch(rows: int, device: torch.device) -> Callable[[Callable[[], object]], float]:
        def milliseconds(run: Callable[[], object]) -> float:
            launched.clear()
            run()
            timed.extend(variant.kernel for variant in launched)
            return one if timed[-1] == ONE else 1.0

        return milliseconds

    monkeypatch.setattr(gated_products, "stopwatch", stopwatch)
    monkeypatch.setattr(gated_products, "is_faster", gated_products_is_faster)
    with tuning():
        assert product(2048) is taken
        assert timed == [TWO, ONE]
        assert product(2048) is taken
    assert product(2048) is taken
    assert timed == [TWO, ONE]


@pytest.mark.parametrize("rows", [128, TALL_ROWS - 1, 8192])
def test_where_one_number_of_rows_is_timed_all_others_find_their_kernel_compiled(
    launched: dict[Variant, None], rows: int
) -> None:
    with tuning():
        assert product(rows)
    assert [variant.kernel for variant in launched] == [ONE, TALL]
    assert product(3584)
    assert product(8448)
    assert [variant.kernel for variant in launched] == [ONE, TALL]


gated_products_is_faster = gated_products.is_faster  # the pretended GPU has no time to be measured
