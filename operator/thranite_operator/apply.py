"""The one place that changes children. What the API server refuses becomes a problem and keeps nothing else from being
done, but what hangs on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from thranite_operator.conditions import FORBIDDEN, INVALID_TEMPLATE, NAME_TAKEN, NO_POD_MONITOR, Problem
from thranite_operator.kinds import CONTROLLER_REVISION, DEPLOYMENT, KINDS, NETWORK_POLICY, POD_MONITOR, Ref
from thranite_operator.kube import Invalid, KubeClient, Refused
from thranite_operator.plan import Plan
from thranite_operator.spec import InferenceService

logger = logging.getLogger(__name__)

FIRST = (CONTROLLER_REVISION.name, NETWORK_POLICY.name)  # what pods are made from, and what shields them
NO_POD_MONITOR_TEXT = (
    "monitoring.podMonitor is enabled, but the cluster has no PodMonitor: install the Prometheus operator"
)


async def carry_out(client: KubeClient, service: InferenceService, plan: Plan) -> Sequence[Problem]:
    """Raises KubeError for what is worth a retry at once."""
    problems = [_taken(ref) for ref in plan.taken]
    refused: set[str] = set()
    for obj in plan.write:
        ref = Ref.of(obj)
        if ref.kind == DEPLOYMENT.name and not refused.isdisjoint(FIRST):
            continue
        logger.info("%s/%s: apply %s", service.namespace, service.name, ref)
        try:
            await client.apply(obj)
        except Refused as refusal:
            problems.append(_refused(ref, refusal))
            refused.add(ref.kind)
    for item in plan.delete:
        logger.info("%s/%s: delete %s", service.namespace, service.name, item.ref)
        try:
            await client.delete(KINDS[item.ref.kind], service.namespace, item.ref.name, item.uid)
        except Refused as refusal:
            if refusal.code != 403:
                raise
            text = f"{item.ref} is not to be deleted: {refusal.message}"
            problems.append(Problem(FORBIDDEN, text, advisory=True))
    return problems


def _refused(ref: Ref, refusal: Refused) -> Problem:
    """403: a quota, an admission webhook, a class that cannot grow its claims. Raises what is no fault of a spec's."""
    if isinstance(refusal, Invalid) or refusal.code == 400:
        return Problem(INVALID_TEMPLATE, f"{ref} is refused: {refusal.message}")
    if refusal.code == 403:
        return Problem(FORBIDDEN, f"{ref} is refused: {refusal.message}")
    if refusal.code == 404 and ref.kind == POD_MONITOR.name:
        return Problem(NO_POD_MONITOR, NO_POD_MONITOR_TEXT, advisory=True)
    raise refusal


def _taken(ref: Ref) -> Problem:
    text = f"{ref} exists and belongs to something else: delete it, or give this InferenceService another name"
    return Problem(NAME_TAKEN, text)
