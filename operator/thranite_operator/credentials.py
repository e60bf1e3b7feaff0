"""How the API server is reached: from the pod's service account, or a kubeconfig, as the kubernetes client does."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import aiohttp
import kopf

logger = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)  # of a call that names none


def connection() -> kopf.ConnectionInfo:
    """Read anew at each call: tokens of service accounts expire. Raises kopf.LoginError."""
    info = kopf.login_via_client(logger=logger, settings=kopf.OperatorSettings())
    if info is None:
        raise kopf.LoginError("the kubernetes client is not installed")
    return info


def session(info: kopf.ConnectionInfo, *, connections: int, headers: Mapping[str, str] = {}) -> aiohttp.ClientSession:
    """To be called in the loop that uses it; the caller closes it.

    Args:
        connections: At most so many at once; 0: without a limit.
    """
    secure = info.as_ssl_context() if info.server.startswith("https") else False
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=secure, limit=connections),
        headers={**info.as_http_headers(), **headers},
        timeout=TIMEOUT,
        proxy=info.proxy_url,
        trust_env=info.trust_env,
    )
