"""How the API server is reached: from the pod's service account, or a kubeconfig, as the kubernetes client does."""

from __future__ import annotations

import logging

import kopf

logger = logging.getLogger(__name__)


def connection() -> kopf.ConnectionInfo:
    """Read anew at each call: tokens of service accounts expire. Raises kopf.LoginError."""
    info = kopf.login_via_client(logger=logger, settings=kopf.OperatorSettings())
    if info is None:
        raise kopf.LoginError("the kubernetes client is not installed")
    return info
