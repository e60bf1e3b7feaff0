"""Names of children, labels and annotations: what users, autoscalers and monitoring may count on."""

from __future__ import annotations

GROUP = "thranite.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"

FIELD_MANAGER = "thranite-operator"

APP = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"
TEMPLATE = f"{GROUP}/template"  # on pods and Jobs: hash of the template they were made from
SPEC_HASH = f"{GROUP}/spec-hash"  # on ControllerRevisions: hash of the spec fields that enter the template
REVISION = f"{GROUP}/revision"  # on Deployments: the ControllerRevision in use
OPERATOR_VERSION = f"{GROUP}/operator-version"  # on ControllerRevisions: who rendered them

ENGINE = "engine"
LOADER = "loader"
CHECK = "check"
DOWNLOAD = "download"

HTTP_PORT = 8000
ADMIN_PORT = 8001


def labels(name: str, component: str) -> dict[str, str]:
    return {APP: "thranite", INSTANCE: name, COMPONENT: component, MANAGED_BY: FIELD_MANAGER}


def selector(name: str, component: str = ENGINE) -> dict[str, str]:
    """What a Deployment selects by; it can never change."""
    return {APP: "thranite", INSTANCE: name, COMPONENT: component}


def selector_text(name: str) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(selector(name).items()))


def of_service(name: str) -> str:
    """Selects all that belongs to one InferenceService."""
    return f"{INSTANCE}={name},{MANAGED_BY}={FIELD_MANAGER}"


def headless(name: str) -> str:
    return f"{name}-pods"


def cache_claim(name: str) -> str:
    return f"{name}-cache"


def loader_job(name: str, digest: str) -> str:
    """At most 63 characters, as the longest name has 52."""
    return f"{name}-load-{digest[:5]}"


def revision(name: str, digest: str) -> str:
    return f"{name}-{digest[:10]}"
