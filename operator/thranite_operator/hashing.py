"""Stable hashes of plain data."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """40 hexadecimal digits, the same for equal data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:40]
