"""How many sequences beyond whole tiles would decode in a step.

Products of many rows are computed in tiles, and a last one of few rows takes about as long as a full one. So where a
few sequences more than fill tiles decode, a batch is done sooner if those that have time pause: it ends with its
longest sequence, and one that has fewer tokens to produce may do so later, beside fewer others. That needs lengths that
are known: the longest must not end early. Measured on an H200 in docs/performance.md.
"""

from __future__ import annotations

from thranite.engine.prompt_share import GRAIN

LEAST_ROWS = 256  # fewer take about as long as their weights are read
MOST_BEYOND = 80  # of more the last tile is full enough


def rows_beyond_tiles(rows: int) -> int:
    """How many of so many rows a step does better without: 0 for all of them."""
    beyond = rows % GRAIN
    return beyond if rows > LEAST_ROWS and beyond <= MOST_BEYOND else 0
