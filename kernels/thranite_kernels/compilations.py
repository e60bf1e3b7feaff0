"""Which kernels Triton compiles (or takes from its cache on disk) from now on: after a warm-up, none should be left."""

from __future__ import annotations

from typing import Any

import triton


class Compilations:
    """Records from construction to `close`. One at a time: Triton has one hook.

    >>> with Compilations() as compiled: ...
    >>> compiled.kernels   # names with the specialisation that was new, in order
    """

    def __init__(self) -> None:
        self.kernels: list[str] = []
        self._before = triton.knobs.runtime.jit_cache_hook
        triton.knobs.runtime.jit_cache_hook = self._record

    def _record(self, **call: Any) -> bool:
        """Triton's hook before a compilation; a true answer would suppress it."""
        self.kernels.append(str(call["repr"]))
        return bool(self._before(**call)) if self._before is not None else False

    def close(self) -> None:
        triton.knobs.runtime.jit_cache_hook = self._before

    def __enter__(self) -> Compilations:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CompiledAnew:
    """Counts what Triton compiles, its cache's hits left out, within a `with`."""

    def __init__(self) -> None:
        self.count = 0
        self._before: Any = None

    def __enter__(self) -> CompiledAnew:
        self._before = triton.knobs.compilation.listener
        triton.knobs.compilation.listener = self._listen
        return self

    def __exit__(self, *_: object) -> None:
        triton.knobs.compilation.listener = self._before

    def _listen(self, **compilation: Any) -> None:
        self.count += not compilation["cache_hit"]
        if self._before is not None:
            self._before(**compilation)
