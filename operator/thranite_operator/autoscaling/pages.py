"""What the running operator tells `thranite-operator explain`, on the port of its probes and metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from thranite_operator.autoscaling.autoscaler import Autoscaler
from thranite_operator.autoscaling.follower import Follower
from thranite_operator.autoscaling.trace import to_line

PATH = "/autoscaling/{namespace}/{name}"
TRACE = f"{PATH}/trace"


def pages(autoscaler: Autoscaler) -> list[web.RouteDef]:
    async def explain(request: web.Request) -> web.Response:
        return web.json_response(explanation(_follower(autoscaler, request)))

    async def trace(request: web.Request) -> web.Response:
        moments = _follower(autoscaler, request).moments
        return web.json_response({"lines": [to_line(moment) for moment in moments]})

    return [web.get(PATH, explain), web.get(TRACE, trace)]


def explanation(follower: Follower) -> dict[str, Any]:
    last = follower.last
    return {
        "metrics": [asdict(metric) for metric in last.metrics] if last is not None else [],
        "message": last.message if last is not None else None,
        "serviceRate": last.state.service_rate if last is not None else None,
        "journal": [asdict(entry) for entry in follower.journal],
    }


def _follower(autoscaler: Autoscaler, request: web.Request) -> Follower:
    key = request.match_info["namespace"], request.match_info["name"]
    follower = autoscaler.follower(key)
    if follower is None:
        raise web.HTTPNotFound(text=f"{key[0]}/{key[1]} is not scaled by this operator\n")
    return follower
