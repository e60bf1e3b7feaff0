"""cuBLASLt's products with an algorithm chosen by time: the same result as torch's, and no slower."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from thranite.layers.cublas_lt import CublasLt
from thranite.layers.dense import add_dense
from thranite.layers.tuned_products import milliseconds, product_by_rule, tuned_product, tuning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DEVICE = torch.device("cuda", 0)


def relative(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "n", "k"), [(17, 6144, 4096), (100, 4104, 1288), (448, 28672, 4096)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_algorithm_gives_the_product(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(rows)
    x, weight = (torch.randn(size, k, device=DEVICE, dtype=dtype, generator=generator) for size in (rows, n))
    exact = x.double() @ weight.double().T
    library = CublasLt(DEVICE)
    products = library.products(rows, n, k, dtype, 10)
    assert products
    stream = torch.randn(rows, n, device=DEVICE, dtype=dtype, generator=generator) * k**0.5
    for product in products:
        out = torch.full((rows, n), float("nan"), device=DEVICE, dtype=dtype)
        library.run(product, x, weight, out)
        assert relative(out, exact) < 4e-3
        out = stream.clone()
        library.run(product, x, weight, out, add=True)
        assert relative(out, stream.double() + exact) < 4e-3


def test_algorithms_tell_their_configurations_apart() -> None:
    library = CublasLt(DEVICE)
    told = [library.configuration(product) for product in library.products(1024, 4096, 4096, torch.bfloat16, 10)]
    assert all(one["tile"] > 0 for one in told)
    assert len({tuple(one.values()) for one in told}) > 1


@pytest.mark.parametrize(("rows", "n", "k"), [(1024, 4096, 4096), (1024, 4096, 14336), (2048, 1024, 3072)])
def test_a_graph_adds_at_each_replay(rows: int, n: int, k: int) -> None:
    """By the choice where there is one, else by torch's product that adds: in place, once."""
    x, weight, stream = (
        torch.randn(size, device=DEVICE, dtype=torch.bfloat16) for size in ((rows, k), (n, k), (rows, n))
    )
    stream *= k**0.5
    before = stream.clone()
    with tuning():
        add_dense(x, weight, stream)
    product = x.double() @ weight.double().T
    assert relative(stream, before.double() + product) < 4e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_dense(x, weight, stream)
    for count in (1, 2):
        stream.copy_(before)
        for _ in range(count):
            graph.replay()
        assert relative(stream, before.double() + count * product) < 4e-3 * count


def test_torch_s_product_that_adds_makes_no_copy() -> None:
    x, weight, stream = (torch.randn(2048, 2048, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    product_by_rule(x, weight, stream)  # cuBLAS's workspace
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    product_by_rule(x, weight, stream)
    assert torch.cuda.max_memory_allocated(DEVICE) - before < stream.nbytes


def test_the_choice_is_no_slower_than_the_rule_and_is_replayed() -> None:
    rows, n, k = 448, 28672, 4096  # where cuBLAS 13.1's rule takes 268 us on an H200, and another algorithm 152
    x, weight = (torch.randn(size, k, device=DEVICE, dtype=torch.bfloat16) for size in (rows, n))
    with tuning():
        chosen = tuned_product(x, weight)
    rule = F.linear(x, weight)
    if chosen is None:
        pytest.skip("the rule's choice is as fast as any here")
    assert relative(chosen, rule.double()) < 4e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tuned_product(x, weight)
    assert captured is not None
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, chosen)
    ours = milliseconds(lambda: tuned_product(x, weight), DEVICE)
    assert ours < 1.02 * milliseconds(lambda: F.linear(x, weight), DEVICE)
