"""The parser and the histories of counters."""

from __future__ import annotations

import pytest

from tests.support.pretended_runtimes import Exported
from thranite_operator.autoscaling.exposition import FAMILIES, Incomplete, Reading, parse
from thranite_operator.autoscaling.history import History

EMPTY = {"waiting": 0.0, "running": 0.0, "kv_cache_usage": 0.0, "received": 0.0, "finished": 0.0, "rejected": 0.0}


def reading(*, models: int = 1, **values: float) -> Reading:
    return Reading(**{**EMPTY, **values}, models=models)


def test_what_was_served_and_turned_away_is_counted_by_reason() -> None:
    text = Exported(waiting=3, running=2, kv_cache=0.5, received=100, finished=40, rejected=6).text()
    text = text.replace('reason="invalid"} 0', 'reason="invalid"} 9')
    expected = Reading(waiting=3, running=2, kv_cache_usage=0.5, received=91, finished=40, rejected=6)
    assert parse(text.encode()) == expected


def test_models_of_one_pod_are_summed_but_for_shares() -> None:
    more = 'thranite_requests_waiting{model_name="y"} 4\nthranite_other{model_name="y"} 1e3\n'
    assert parse((Exported(waiting=3).text() + more).encode()).waiting == 7
    more = 'thranite_kv_cache_usage_ratio{model_name="y"} 0.75\n'
    assert parse((Exported(kv_cache=0.5).text() + more).encode()).kv_cache_usage == 0.75


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_not_there_is_no_zero(family: str) -> None:
    lines = [line for line in Exported().text().splitlines() if family not in line]
    with pytest.raises(Incomplete, match=family):
        parse("\n".join(lines).encode())


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "many"])
def test_what_can_be_no_count_is_refused(value: str) -> None:
    with pytest.raises(Incomplete):
        parse(Exported().text().replace('waiting{model_name="x"} 0', f'waiting{{model_name="x"}} {value}').encode())


def test_rates_come_with_the_second_reading_and_survive_a_restart_of_the_runtime() -> None:
    history = History()
    history.add("a", reading(received=100, finished=90), 10.0)
    first = history.load("a", 10.0, 15)
    assert first is not None
    assert first.rates is None
    history.add("a", reading(received=130, finished=105), 25.0)
    second = history.load("a", 25.0, 15)
    assert second is not None
    assert second.rates is not None
    assert (second.rates.received, second.rates.finished, second.rates.seconds) == (2.0, 1.0, 15.0)
    history.add("a", reading(received=30, finished=15), 40.0)
    third = history.load("a", 40.0, 15)
    assert third is not None
    assert third.rates is not None
    assert (third.rates.received, third.rates.finished) == (2.0, 1.0)


def test_a_reading_is_stale_after_three_intervals() -> None:
    history = History()
    history.add("a", reading(waiting=1), 10.0)
    assert history.load("a", 55.0, 15) is not None
    assert history.load("a", 55.1, 15) is None
    history.keep(set())
    assert history.load("a", 10.0, 15) is None


def test_a_model_of_several_that_ends_is_no_burst_of_requests() -> None:
    history = History()
    rates = []
    for time, received, models in ((10.0, 1000, 2), (25.0, 900, 1), (40.0, 915, 1)):
        history.add("a", reading(received=received, models=models), time)
        load = history.load("a", time, 15)
        assert load is not None
        rates.append(None if load.rates is None else load.rates.received)
    assert rates == [None, None, 1.0]
