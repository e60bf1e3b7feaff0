"""cuBLASLt's products with an algorithm chosen by time: the same result as torch's, and no slower."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from thranite.layers.cublas_lt import CublasLt
from thranite.layers.tuned_products import milliseconds, tuned_product, tuning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize(("rows", "n", "k"), [(17, 6144, 4096), (100, 4104, 1288), (448, 28672, 4096)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_algorithm_gives_the_product(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(rows)
    x, weight = (torch.randn(size, k, device=DEVICE, dtype=dtype, generator=generator) for size in (rows, n))
    exact = x.double() @ weight.double().T
    library = CublasLt(DEVICE)
    products = library.products(rows, n, k, dtype, 10)
    assert products
    for product in products:
        out = torch.full((rows, n), float("nan"), device=DEVICE, dtype=dtype)
        library.run(product, x, weight, out)
        assert float((out.double() - exact).norm() / exact.norm()) < 4e-3


def test_the_choice_is_no_slower_than_the_rule_and_is_replayed() -> None:
    rows, n, k = 448, 28672, 4096  # where cuBLAS 13.1's rule takes 268 us on an H200, and another algorithm 152
    x, weight = (torch.randn(size, k, device=DEVICE, dtype=torch.bfloat16) for size in (rows, n))
    with tuning():
        chosen = tuned_product(x, weight)
    rule = F.linear(x, weight)
    if chosen is None:
        pytest.skip("the rule's choice is as fast as any here")
    assert float((chosen.float() - rule.float()).norm() / rule.float().norm()) < 4e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tuned_product(x, weight)
    assert captured is not None
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, chosen)
    ours = milliseconds(lambda: tuned_product(x, weight), DEVICE)
    assert ours < 1.02 * milliseconds(lambda: F.linear(x, weight), DEVICE)
