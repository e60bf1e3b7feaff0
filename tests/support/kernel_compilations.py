"""What Triton compiles or finds compiled, and by what it tells two compilations of a kernel apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton


@dataclass(frozen=True)
class Compilation:
    """`facts`: all that is in the key of Triton's cache, each by a name."""

    kernel: str
    anew: bool
    facts: dict[str, str]


@contextmanager
def compilations() -> Iterator[list[Compilation]]:
    """Those within, in order: each the first time that this process needs it."""
    made: list[Compilation] = []

    def listen(*, src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        made.append(Compilation(src.name, not cache_hit, _facts(src, metadata)))

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = listen
    try:
        yield made
    finally:
        triton.knobs.compilation.listener = before


def _facts(src: Any, metadata: dict[str, Any]) -> dict[str, str]:
    names = src.fn.arg_names
    return {
        "source and functions that it calls": src.fn.cache_key,
        **{f"type of {name}": str(kind) for name, kind in src.signature.items()},
        **{f"constant {_name(names, path)}": str(value) for path, value in src.constants.items()},
        **{f"known of {_name(names, path)}": str(value) for path, value in src.attrs.items()},
        **{f"option {name}": _text(value) for name, value in metadata.items() if name not in ("hash", "target")},
    }


def _name(names: list[str], path: tuple[int, ...]) -> str:
    return ".".join([names[path[0]], *(str(index) for index in path[1:])])


def _text(value: Any) -> str:
    """The same for what was read from the cache, where tuples have become lists."""
    return json.dumps(value, default=str)


def differences(anew: Iterable[Compilation], ahead: Iterable[Compilation]) -> str:
    """Of each compilation `anew`, what sets it apart from the one `ahead` that is most alike."""
    ahead = list(ahead)
    lines: list[str] = []
    for one in anew:
        same = [_apart(one.facts, other.facts) for other in ahead if other.kernel == one.kernel]
        apart = min(same, key=len, default=["no other was compiled ahead"]) or ["nothing: it was there"]
        lines += [f"{one.kernel}:", *(f"  {line}" for line in apart)]
    return "\n".join(lines)


def _apart(anew: dict[str, str], ahead: dict[str, str]) -> list[str]:
    return [
        f"{name}: {anew.get(name)}, ahead {ahead.get(name)}"
        for name in {**anew, **ahead}
        if anew.get(name) != ahead.get(name)
    ]
