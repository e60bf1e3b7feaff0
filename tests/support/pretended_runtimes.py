"""Admin ports of pods that are not there, on addresses of the loopback: what they export is set by the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from aiohttp import web

from tests.support.apiserver import free_ports

FORMAT = """\
# TYPE thranite_requests_waiting gauge
thranite_requests_waiting{{model_name="x"}} {waiting}
# TYPE thranite_requests_running gauge
thranite_requests_running{{model_name="x"}} {running}
# TYPE thranite_kv_cache_usage_ratio gauge
thranite_kv_cache_usage_ratio{{model_name="x"}} {kv_cache}
# TYPE thranite_requests_received_total counter
thranite_requests_received_total{{model_name="x"}} {received}
# TYPE thranite_requests_finished_total counter
thranite_requests_finished_total{{model_name="x",reason="stop"}} {finished}
thranite_requests_finished_total{{model_name="x",reason="abort"}} 7
# TYPE thranite_requests_rejected_total counter
thranite_requests_rejected_total{{model_name="x",reason="queue_full"}} {rejected}
thranite_requests_rejected_total{{model_name="x",reason="invalid"}} 0
"""


@dataclass
class Exported:
    waiting: float = 0
    running: float = 0
    kv_cache: float = 0.0
    received: float = 0
    finished: float = 0
    rejected: float = 0

    def text(self) -> str:
        return FORMAT.format(**vars(self))


@dataclass
class Runtimes:
    """`exported` by address; another one of `hosts`' addresses answers 503. `asked`: query strings."""

    port: int = field(default_factory=lambda: free_ports(1)[0])
    exported: dict[str, Exported] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=lambda: ["0.0.0.0"])
    asked: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Runtimes:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._answer)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        for host in self.hosts:
            await web.TCPSite(self._runner, host, self.port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.query_string)
        assert request.transport is not None
        found = self.exported.get(request.transport.get_extra_info("sockname")[0])
        if found is None:
            return web.Response(status=503)
        return web.Response(text=found.text())
