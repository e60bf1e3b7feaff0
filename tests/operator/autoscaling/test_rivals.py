"""The rivals' rules do what their sources do, on cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from autoscaling.plant import PodView, View
from autoscaling.policies.aibrix import AIBrix
from autoscaling.policies.hpa import Behavior, Hpa, external_metric, kv_cache, pods_metric, queue
from autoscaling.policies.keda import Keda
from autoscaling.policies.kubeai import KubeAI
from autoscaling.policies.wva import Wva
from autoscaling.replica import Scrape


def scrape(waiting: int = 0, kv: float = 0.0) -> Scrape:
    return Scrape(
        requests_waiting=waiting,
        requests_running=0,
        kv_cache_usage_ratio=kv,
        waiting_tokens=0,
        oldest_waiting_seconds=0.0,
        draining=False,
        requests_received_total=0,
        requests_finished_total=0,
        requests_rejected_total=0,
    )


def view(now: float, scrapes: Sequence[Scrape | None], *, pending: int = 0, in_flight: int = 0) -> View:
    pods = [PodView(uid=f"p{index}", phase="Ready", scrape=item) for index, item in enumerate(scrapes)]
    pods += [PodView(uid=f"s{index}", phase="Pending") for index in range(pending)]
    return View(now=now, current=len(pods), pods=tuple(pods), in_flight=in_flight)


def test_hpa_takes_the_ratio_and_leaves_small_ones_alone() -> None:
    assert pods_metric(view(0, [scrape(8), scrape(8)]), queue, 4.0) == 4
    assert pods_metric(view(0, [scrape(4), scrape(4)]), queue, 4.0) == 2
    assert pods_metric(view(0, [scrape(kv=0.8), scrape(kv=0.8)]), kv_cache, 0.75) == 2


def test_hpa_counts_what_is_missing_against_the_change() -> None:
    assert pods_metric(view(0, [scrape(12), scrape(12)], pending=2), queue, 4.0) == 6
    assert pods_metric(view(0, [scrape(5), None]), queue, 4.0) == 2  # up is not sure: 2.5 on average
    assert pods_metric(view(0, [scrape(0), None, None, None]), queue, 4.0) == 3
    assert pods_metric(view(0, [None, None]), queue, 4.0) is None


def test_hpa_goes_down_to_the_most_of_five_minutes() -> None:
    hpa = Hpa("HPA", [(queue, 4.0)])
    assert hpa.decide(view(0, [scrape(4)] * 4)) == 4
    assert [hpa.decide(view(15.0 * tick, [scrape(1)] * 4)) for tick in range(1, 22)][-3:] == [4, 1, 1]


def test_hpa_holds_while_one_of_two_metrics_is_unknown_and_the_other_says_down() -> None:
    assert Hpa("HPA", [(queue, 4.0)]).decide(view(0, [None, None])) == 2


def test_hpa_grows_by_four_pods_or_twice_in_a_period() -> None:
    behavior = Behavior()
    assert behavior.follow(0.0, 1, 20) == 5
    assert behavior.follow(14.0, 5, 20) == 5
    assert behavior.follow(16.0, 5, 20) == 10


def test_keda_reads_an_outage_as_no_queue() -> None:
    keda = Keda()
    assert external_metric(12, 5.0, 2) == 3
    sizes = [keda.decide(view(15.0 * tick, [None] * 4)) for tick in range(22)]
    assert sizes[0] == 4
    assert sizes[-1] == 0  # the plant's minimum of 1 follows


def test_apa_takes_the_ratio_of_three_minutes_and_shrinks_to_the_least_of_five() -> None:
    apa = AIBrix("APA", "APA", kv_cache, 0.5)
    assert apa.decide(view(0, [scrape(kv=0.9)] * 2)) == 4
    assert AIBrix("APA", "APA", kv_cache, 0.5).decide(view(0, [scrape(kv=0.9)])) == 2
    shrinking = AIBrix("APA", "APA", kv_cache, 0.5)
    assert shrinking.decide(view(0, [scrape(kv=0.05)] * 6)) == 3
    assert shrinking.decide(view(10, [scrape(kv=0.63)] * 5)) == 3  # 0.34 on average asks for 4


def test_apa_counts_pods_that_start_as_idle() -> None:
    assert AIBrix("APA", "APA", kv_cache, 0.5).decide(view(0, [scrape(kv=0.9)], pending=1)) == 2


def test_kpa_on_the_mean_never_asks_for_more_than_two() -> None:
    assert AIBrix("KPA", "KPA", kv_cache, 0.5).decide(view(0, [scrape(kv=1.0)] * 4)) == 2
    assert AIBrix("KPA", "KPA", kv_cache, 0.5, summed=True).decide(view(0, [scrape(kv=1.0)] * 4)) == 8


def test_wva_adds_one_when_little_is_spare_and_none_while_replicas_start() -> None:
    assert Wva("WVA", Behavior()).decide(view(0, [scrape(3), scrape(3)])) == 3
    assert Wva("WVA", Behavior()).decide(view(0, [scrape(3), scrape(3)], pending=1)) == 3
    assert Wva("WVA", Behavior()).decide(view(0, [scrape(kv=0.75), scrape(kv=0.75)])) == 3


def test_wva_removes_one_only_if_the_rest_has_room() -> None:
    wva = Wva("WVA", Behavior(down_window=0.0))
    assert wva.decide(view(0, [scrape(kv=0.3)] * 3)) == 2
    assert Wva("WVA", Behavior(down_window=0.0)).decide(view(0, [scrape(kv=0.6)] * 3)) == 3
    assert Wva("WVA", Behavior(down_window=0.0)).decide(view(0, [scrape(kv=0.1)])) == 1


def test_kubeai_takes_the_mean_of_ten_minutes_and_shrinks_after_thirty_seconds() -> None:
    kubeai = KubeAI(slots=16)  # 6.25 requests a replica
    assert kubeai.decide(view(0, [scrape()] * 2, in_flight=12)) == 2
    grown = [kubeai.decide(view(10.0 * tick, [scrape()] * 2, in_flight=60)) for tick in range(1, 60)]
    assert grown[0] == 3  # 13.2 on average
    assert grown[-1] == 10
    idle = KubeAI(slots=16)
    sizes = [idle.decide(view(10.0 * tick, [scrape()] * 2, in_flight=0)) for tick in range(40)]
    assert sizes[:30] == [2] * 30
    assert sizes[-1] == 1
