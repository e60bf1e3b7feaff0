"""Numbers that a caller gives, as Python's own: numpy's integers overflow, and a float fails far from its field."""

from __future__ import annotations

import operator
from numbers import Number
from typing import Any


def plain_integer(value: Any) -> int:
    """Raises TypeError for what is no integer; a bool is none."""
    if isinstance(value, bool):
        raise TypeError("a bool is no number")
    return operator.index(value)


def plain_float(value: Any) -> float:
    """Raises TypeError, ValueError or OverflowError for what is no number; a bool and a text are none."""
    if isinstance(value, bool) or not isinstance(value, Number):
        raise TypeError("not a number")
    return float(value)  # type: ignore[arg-type]
