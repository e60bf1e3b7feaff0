"""Kernel tests: every test takes `device`, "cpu" in Triton's interpreter and "cuda" on a GPU (`-m gpu`).

Triton reads TRITON_INTERPRET when a kernel is decorated, so a process is either interpreting or not. `make
test-kernels` sets it; where it is not set, the "cpu" cases skip and `test_interpreter.py` runs this folder once more in
a process of its own, so that plain `pytest tests` sees everything without changing its own environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Infinities are part of the arithmetic (exp2 of a large score, log2 of 0); numpy warns of them, GPUs do not."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernel runs."""
    name: str = request.param
    if name == "cpu" and not INTERPRETING:
        pytest.skip("needs TRITON_INTERPRET=1; test_interpreter.py runs it in its own process")
    return name


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test draws its own inputs from the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
