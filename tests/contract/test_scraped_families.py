"""What the operator's scraper asks for is what the runtime exports, with `?name[]=` and without."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.routing import Route

from tests.support.live_server import serve
from thranite.engine.stats import EngineStats
from thranite.request import FinishReason
from thranite.server.metrics import MetricsSnapshot, all_families, engine_families, render
from thranite.server.metrics_source import MetricsSource
from thranite_operator.autoscaling.exposition import FAMILIES, SERVED, Reading, parse
from thranite_operator.autoscaling.scraper import Scraper, Target

STATS = EngineStats(
    requests_waiting=3,
    requests_running=2,
    kv_cache_usage_ratio=0.5,
    requests_received_total=20,
    requests_finished_total={"stop": 4, "length": 5, "abort": 1},
    requests_rejected_total={"queue_full": 6, "draining": 1, "invalid": 2},
)
SNAPSHOT = MetricsSnapshot("m", STATS)
FAKE_PODS = Path(__file__).parents[2] / "dev/cluster/helpers/fake-pods/main.go"
EXPECTED = Reading(waiting=3, running=2, kv_cache_usage=0.5, received=18, finished=9, rejected=6)


def test_the_runtimes_answer_is_understood() -> None:
    asked, _ = render(engine_families(SNAPSHOT), FAMILIES)
    everything, _ = render(engine_families(SNAPSHOT))
    assert parse(asked) == parse(everything) == EXPECTED
    assert len(asked) < len(everything) / 2


def test_several_models_of_a_runtime_are_one_load() -> None:
    asked, _ = render(all_families([SNAPSHOT, MetricsSnapshot("other", STATS)]), FAMILIES)
    expected = Reading(waiting=6, running=4, kv_cache_usage=0.5, received=36, finished=18, rejected=12, models=2)
    assert parse(asked) == expected


def test_a_runtime_answers_the_scraper_and_closes_the_connection() -> None:
    """The scraper waits for its end."""
    with serve(Starlette(routes=[Route("/metrics", MetricsSource("m").endpoint)])) as url:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        scraper = Scraper(port=address.port)
        (answer,) = asyncio.run(scraper.scrape([Target("p", address.hostname)]))
    assert answer.reading == Reading(0, 0, 0, 0, 0, 0), answer.error


def test_an_idle_runtime_exports_all_of_them() -> None:
    idle, _ = render(engine_families(MetricsSnapshot("m")), FAMILIES)
    assert parse(idle).waiting == 0


def test_reasons_are_the_runtimes() -> None:
    assert {reason.decode() for reason in SERVED} <= {reason.value for reason in FinishReason}


def test_the_local_clusters_fake_pods_answer_as_an_idle_runtime() -> None:
    idle, _ = render(engine_families(MetricsSnapshot("kwok")), FAMILIES)
    assert f"const idleMetrics = `{idle.decode()}`" in FAKE_PODS.read_text()
