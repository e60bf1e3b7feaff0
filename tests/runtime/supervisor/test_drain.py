from __future__ import annotations

from thranite.supervisor.drain import EXPIRY_SECONDS, Drain


def test_phases_of_a_drain() -> None:
    drain = Drain(began=100.0, delay=5.0, deadline=130.0)
    assert [drain.refusing(now) for now in (100.0, 104.9, 105.0, 200.0)] == [False, False, True, True]
    assert [drain.cutting_off(now) for now in (105.0, 129.9, 130.0)] == [False, False, True]
    assert [drain.expired(now) for now in (130.0, 130 + EXPIRY_SECONDS - 0.1, 130 + EXPIRY_SECONDS)] == [
        False,
        False,
        True,
    ]


def test_a_deadline_before_the_delay_refuses_at_the_deadline() -> None:
    assert Drain(100.0, 5.0, 102.0).refusing(102.0)


def test_asking_again_counts_from_the_beginning() -> None:
    drain = Drain(100.0, 5.0, 130.0)
    assert drain.with_deadline(30.0) == drain
    assert drain.with_deadline(60.0).deadline == 160.0


def test_a_termination_takes_the_earlier_deadline_and_never_expires() -> None:
    drain = Drain(100.0, 5.0, 130.0)
    assert drain.terminate(now=110.0, timeout=10.0).deadline == 120.0
    late = drain.terminate(now=110.0, timeout=50.0)
    assert late.deadline == 130.0
    assert late.terminating
    assert not late.expired(10_000.0)
    assert late.hurry(111.0).cutting_off(111.0)
