"""Chained content hashes of full blocks: equal hashes mean equal tokens from the start of the sequence on.

hash(i) = xxh3_128(hash(i - 1) ‖ tokens of block i as little-endian uint32), hash(-1) = xxh3_128(salt). 128 bits: two
different prefixes collide with probability under 1e-20 for a billion cached blocks, so contents are not compared again.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

import xxhash


def root(salt: str) -> bytes:
    """The parent of a sequence's first block. Different salts (tenants, adapters) never share a block."""
    return xxhash.xxh3_128_digest(salt.encode())


def extend(hashes: list[bytes], salt_root: bytes, tokens: Sequence[int], block_size: int) -> None:
    """Append the hashes of the full blocks of `tokens` that `hashes` lacks."""
    words = array("I", tokens[len(hashes) * block_size : len(tokens) // block_size * block_size])
    if sys.byteorder == "big":
        words.byteswap()
    contents, width = words.tobytes(), block_size * words.itemsize
    parent = hashes[-1] if hashes else salt_root
    for first in range(0, len(contents), width):
        parent = xxhash.xxh3_128_digest(parent + contents[first : first + width])
        hashes.append(parent)
