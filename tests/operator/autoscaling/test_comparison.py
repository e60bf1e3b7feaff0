"""A small part of `make bench-autoscaling`: a change of the decision that makes it worse is seen here first."""

from __future__ import annotations

import pytest
from autoscaling.compare import OURS, POLICIES, Row, run_all, shortfalls, table, total
from autoscaling.trace_set import TUNE

NAMES = ("step-tune-1", "loss-tune-1")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return run_all([trace for trace in TUNE if trace.name in NAMES], POLICIES, cold_starts=(120.0,))


def test_no_rival_is_better(rows: list[Row]) -> None:
    assert shortfalls(rows) == [], table(rows)


def test_our_misses_are_under_half_of_the_plain_ratios(rows: list[Row]) -> None:
    ours, plain = total(rows, OURS), total(rows, "HPA, both")
    assert ours.misses < plain.misses / 2, table(rows)
    assert ours.replica_hours < 1.3 * plain.replica_hours, table(rows)


def test_every_rival_saw_the_same_requests(rows: list[Row]) -> None:
    assert len({total(rows, name).requests for name in POLICIES}) == 1


def test_a_shortfall_is_found() -> None:
    def row(policy: str, misses: int, hours: float) -> Row:
        return Row(
            policy=policy, trace="t", kind="step", half="tune", cold_start=30.0, requests=100, misses=misses,
            replica_hours=hours, changes=0, flips=0,
        )  # fmt: skip

    ours = row(OURS, 10, 10.0)
    assert shortfalls([ours, row("dear", 0, 11.1), row("worse", 11, 9.0)]) == []
    assert len(shortfalls([ours, row("as cheap", 9, 10.9)])) == 1
    assert len(shortfalls([ours, row("both", 9, 9.0)])) == 1
