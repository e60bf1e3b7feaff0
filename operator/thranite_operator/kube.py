"""The operator's client of the Kubernetes API: a few verbs over one keep-alive session.

KubeError
├── Unreachable     no answer: the server is away, or the call took too long
└── Refused         an answer that says no; `code` and `reason` are the server's
    └── Invalid     422: the object itself is wrong, and asking again cannot help
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import aiohttp
import kopf

from thranite_operator import credentials
from thranite_operator.kinds import Kind, Object, View, kind_of
from thranite_operator.names import FIELD_MANAGER

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class KubeError(Exception):
    """A call to the API server failed."""


class Unreachable(KubeError):
    pass


# Server-side apply's words, with code 500, for unknown fields, values of another type and keys that are there twice.
UNTYPED = "failed to create typed patch object"


class Refused(KubeError):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Invalid(Refused):
    pass


class KubeClient:
    """`writes` counts the calls that could change something, by verb and kind."""

    def __init__(self, connect: Callable[[], kopf.ConnectionInfo], user_agent: str) -> None:
        self._connect = connect
        self._agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._server = ""
        self.writes: dict[tuple[str, str], int] = {}

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._call("GET", kind.path(namespace, name))
        except Refused as refusal:
            if refusal.code == 404:
                return None
            raise

    async def items(self, kind: Kind, namespace: str, **selectors: str) -> list[Object]:
        """`labelSelector`, `fieldSelector`. The items lack apiVersion and kind, as the server sends them."""
        found: list[Object] = (await self._call("GET", kind.path(namespace), params=selectors)).get("items", [])
        return found

    async def read(self, path: str) -> Object:
        """A GET of anything else."""
        return await self._call("GET", path)

    async def serves(self, api_version: str, plural: str) -> bool:
        """Whether the API has such a resource."""
        try:
            resources = (await self._call("GET", f"/apis/{api_version}")).get("resources", [])
        except Refused as refusal:
            if refusal.code == 404:
                return False
            raise
        return any(item["name"] == plural for item in resources)

    async def apply(self, obj: View, subresource: str = "") -> Object:
        """Server-side apply as this operator, also over others' values of the same fields."""
        kind, meta = kind_of(obj), obj["metadata"]
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = kind.path(meta["namespace"], meta["name"], subresource)
        return await self._write("apply", kind, "PATCH", path, obj, params=params, content_type=APPLY)

    async def create(self, obj: View) -> Object:
        kind = kind_of(obj)
        return await self._write("create", kind, "POST", kind.path(obj["metadata"]["namespace"]), obj)

    async def merge(self, kind: Kind, namespace: str, name: str, patch: View, subresource: str = "") -> Object:
        """With a resourceVersion in `patch` it is refused with 409 once the object has another one."""
        path = kind.path(namespace, name, subresource)
        return await self._write("patch", kind, "PATCH", path, patch, content_type=MERGE)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Exactly that object; one that is gone already is no error."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._write("delete", kind, "DELETE", kind.path(namespace, name), options)
        except Refused as refusal:
            if refusal.code not in (404, 409):
                raise

    async def _write(self, verb: str, kind: Kind, method: str, path: str, body: View, **options: Any) -> Object:
        self.writes[verb, kind.name] = self.writes.get((verb, kind.name), 0) + 1
        return await self._call(method, path, body, **options)

    async def _call(
        self,
        method: str,
        path: str,
        body: View | None = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        try:
            for attempt in (1, 2):
                session = await self._open()
                async with session.request(
                    method, self._server + path, data=data, params=params, headers=headers
                ) as answer:
                    if answer.status == 401 and attempt == 1:  # the token has expired
                        await self._close()
                        continue
                    return _parse(answer.status, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {type(error).__name__}: {error}") from error
        raise Unreachable(f"{method} {path}: no credentials are accepted")

    async def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            try:
                info = await asyncio.to_thread(self._connect)
            except kopf.LoginError as error:
                raise Unreachable(str(error)) from error
            self._server = info.server.rstrip("/")
            headers = {"User-Agent": self._agent, "Accept": "application/json"}
            self._session = credentials.session(info, connections=32, headers=headers)
        return self._session

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _parse(code: int, content: bytes) -> Object:
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = {"message": content.decode(errors="replace")[:500]}  # a proxy's words, not the API server's
    if code < 400:
        result: Object = body
        return result
    message = str(body.get("message") or f"HTTP {code}")
    error = Invalid if code == 422 or (code == 500 and message.startswith(UNTYPED)) else Refused
    raise error(code, str(body.get("reason", "")), message)
