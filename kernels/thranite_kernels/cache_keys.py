"""Triton's cache key of a kernel, the same whatever a process launched before.

A kernel's key covers the named constants that its callees use. Before 3.8 Triton read those of a callee before it
computed the callee's own key, which is what finds them: they were missed unless another kernel had called the same
function earlier. `paged_decode`'s key was one after `paged_prefill` and another without, so what one process compiled
another did not find.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.runtime.jit import DependenciesFinder

ORDERLESS = (3, 8)


def compute_callees_first() -> None:
    """Once a process, before any key is asked for."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= ORDERLESS:
        return
    update = DependenciesFinder._update_hash

    def update_after_callee(finder: DependenciesFinder, callee: Any) -> None:
        _ = callee.cache_key
        update(finder, callee)

    DependenciesFinder._update_hash = update_after_callee
