"""GET /: a page to chat with the model beside its figures. One file, no build step, nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_HTML = files("thranite.server").joinpath("page.html").read_bytes()
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
}


async def page(_: Request) -> Response:
    return Response(_HTML, headers=_HEADERS, media_type="text/html")
