"""JSON that models and clients wrote, as values that can be written again."""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, *, strict: bool = True) -> Any:
    """As `json.loads`, which also raises RecursionError. Half a surrogate pair, which UTF-8 cannot spell, becomes
    U+FFFD."""
    value = json.loads(text, strict=strict)
    if _SURROGATE.search(text) is None:
        return value
    plain = json.dumps(value, ensure_ascii=False)
    return json.loads(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
