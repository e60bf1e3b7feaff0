"""Copies that would make the host wait for a GPU, noticed on a pretended one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaits(TorchDispatchMode):
    """Within, no copy makes the host wait for a pretended GPU. (`FakeTensorMode` itself refuses to ask for values.)"""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.__name__.partition(".")[0]
        if name in ("to", "_to_copy", "copy_"):
            devices = {tensor.device.type for tensor in (*args, result) if isinstance(tensor, torch.Tensor)}
            assert devices != {"cpu", "cuda"}, f"{name} between a GPU and memory that is not pinned waits"
        return result
