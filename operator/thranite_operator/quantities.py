"""Kubernetes quantities as numbers, so that "1000m" and "1" are the same wish."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_SUFFIXES = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_SUFFIXES |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)}
_SUFFIXES |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
_PATTERN = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]+)|([A-Za-z]{0,2}))")


def parse_quantity(value: Any) -> Decimal | None:
    """None for what is no quantity."""
    match = _PATTERN.fullmatch(str(value))
    if match is None or (match[3] or "") not in _SUFFIXES:
        return None
    return Decimal(match[1] + (match[2] or "")) * _SUFFIXES[match[3] or ""]


def same_quantity(left: Any, right: Any) -> bool:
    numbers = parse_quantity(left), parse_quantity(right)
    return left == right if None in numbers else numbers[0] == numbers[1]
