"""The operator's HTTP port: probes and metrics.

It answers from the event loop that reconciles, so a blocked loop fails the liveness probe by not answering at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from thranite_operator.metrics import OperatorMetrics

Check = Callable[[], str | None]  # what is wrong; None for nothing


@asynccontextmanager
async def serving(
    host: str, port: int, live: Check, ready: Check, metrics: OperatorMetrics, *pages: web.RouteDef
) -> AsyncIterator[int]:
    """Answer for the length of the block, with more `pages` too; yields the port, for 0 takes any free one."""

    async def render(_: web.Request) -> web.Response:
        body, content_type = metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/livez", _probe(live)), web.get("/readyz", _probe(ready)), web.get("/metrics", render)])
    app.add_routes(pages)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _probe(check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        wrong = check()
        return web.Response(status=200 if wrong is None else 503, text=f"{wrong or 'ok'}\n")

    return answer
