"""The account that pods run under, and the budget of those that may be missing."""

from __future__ import annotations

from thranite_operator import names
from thranite_operator.kinds import DISRUPTION_BUDGET, SERVICE_ACCOUNT, Object
from thranite_operator.render.objects import child
from thranite_operator.spec import InferenceService


def service_account(service: InferenceService) -> Object:
    """Without rights, and no token of it in any pod."""
    return child(SERVICE_ACCOUNT, service, service.name, names.ENGINE, automountServiceAccountToken=False)


def disruption_budget(service: InferenceService) -> Object | None:
    """From two replicas on: a budget for one would block every drain of its node."""
    if service.spec.replicas < 2:
        return None
    spec = {
        "selector": {"matchLabels": names.selector(service.name)},
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return child(DISRUPTION_BUDGET, service, service.name, names.ENGINE, spec=spec)
