"""The soak of `make soak`, for seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

from serve_null import null_server
from serve_soak import NULL_OPTIONS, soak

GROWTH = 1.2  # seconds do not settle an allocator; `make soak` holds memory to 2 %


def test_nothing_is_left_of_aborts_samples_grammars_deadlines_and_preemption(tmp_path: Path) -> None:
    with null_server(tmp_path, *NULL_OPTIONS) as server:
        left = soak(server, seconds=14, requests=300, growth=GROWTH)
    assert left.problems == ()
    assert {"plain", "aborted", "samples", "grammar", "expired"} <= set(left.outcomes)
    assert left.outcomes.total() >= 300
    assert left.preemptions > 0
