"""The decoder's modules are torch's, with plainer attributes."""

from __future__ import annotations

import torch
from torch import nn

from thranite.layers.module import Module


class Scale(Module):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.full((2,), 3.0, device=device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None
        return x * self.weight


class Twice(Module):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.first, self.second = Scale(device), Scale(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def test_parameters_and_modules_are_found_as_torch_finds_them() -> None:
    """By name, in order, once each, and as plain attributes."""
    module = Twice("cpu")
    assert [name for name, _ in module.named_parameters()] == ["first.weight", "second.weight"]
    assert module.__dict__["first"] is module.first is module.get_submodule("first")
    assert module.first.__dict__["weight"] is module.first.weight is module.get_parameter("first.weight")
    assert module(torch.ones(2)).tolist() == [9.0, 9.0]


def test_what_is_set_again_is_what_is_used() -> None:
    """Other parameters, no parameter, another module."""
    module = Twice("cpu")
    module.first.weight = nn.Parameter(torch.ones(2), requires_grad=False)
    assert module(torch.ones(2)).tolist() == [3.0, 3.0]
    module.second = module.first
    assert module(torch.ones(2)).tolist() == [1.0, 1.0]
    module.first.weight = None
    assert module.first.weight is None
    assert list(module.parameters()) == []


def test_a_module_that_moves_uses_its_new_parameters() -> None:
    """From meta they cannot be moved and are made anew."""
    module = Twice("meta")
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.fill_(2.0)
    assert module(torch.ones(2)).tolist() == [4.0, 4.0]
    assert module.to(torch.float64)(torch.ones(2)).dtype == torch.float64
