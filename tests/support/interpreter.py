"""Triton's interpreter without its most repeated work.

It looks through all of `triton.language` for what to replace at each launch, and once more at each call of a device
function, which takes a third of the kernels' tests' time; what it finds is the same each time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

Scope = Any
"""Triton's: `set_attr(owner, name, value)` notes what was there, `restore()` puts it back."""
Modules = frozenset[str]


def remember_replacements(interpreter: Any) -> bool:
    """Let `interpreter`, which is Triton's module, remember what it replaces. False, and it stays as it is, where it is
    not made as the one that this knows."""
    replace, scope_type = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if replace is None or scope_type is None or not hasattr(scope_type(), "_changes"):
        return False
    if not isinstance(replace, _Replacements):
        interpreter._patch_lang = _Replacements(replace, scope_type, interpreter.tl)
    return True


class _Replacements:
    """In place of Triton's `_patch_lang`: a launch undoes what its device functions replaced, too."""

    def __init__(self, replace: Callable[[FunctionType], Scope], scope_type: Callable[[], Scope], tl: Any) -> None:
        self._replace, self._scope_type, self._languages = replace, scope_type, (tl, tl.core)
        self._seen: dict[FunctionType, Modules] = {}
        self._known: dict[tuple[Modules, Modules], list[tuple[object, str, object]]] = {}
        self._replaced: Modules = frozenset()
        self._scopes: list[Scope] = []

    def __call__(self, function: FunctionType) -> Scope:
        """Only the launch restores what it is given."""
        seen, scope = self._seen_by(function), self._scope_type()
        if seen <= self._replaced:
            return scope
        if not self._scopes:
            scope.restore = self._restore
        self._scopes.append(self._replacing(function, seen))
        self._replaced |= seen
        return scope

    def _seen_by(self, function: FunctionType) -> Modules:
        if function not in self._seen:
            modules = filter(inspect.ismodule, function.__globals__.values())
            self._seen[function] = frozenset(module.__name__ for module in modules if module in self._languages)
            assert self._seen[function], f"{function.__name__} sees no triton.language"
        return self._seen[function]

    def _replacing(self, function: FunctionType, seen: Modules) -> Scope:
        key = (self._replaced, seen)
        if key not in self._known:
            scope = self._replace(function)
            self._known[key] = [(owner, name, getattr(owner, name)) for owner, name, _ in scope._changes]
            return scope
        scope = self._scope_type()
        for owner, name, value in self._known[key]:
            scope.set_attr(owner, name, value)
        return scope

    def _restore(self) -> None:
        while self._scopes:
            self._scopes.pop().restore()
        self._replaced = frozenset()
