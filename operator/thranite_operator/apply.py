"""The one place that changes children. What the API server refuses for good becomes a problem, not a retry, and keeps
nothing else from being done."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from thranite_operator.conditions import FORBIDDEN, INVALID_TEMPLATE, NAME_TAKEN, NO_POD_MONITOR, Problem
from thranite_operator.kinds import KINDS, POD_MONITOR, Ref
from thranite_operator.kube import Invalid, KubeClient, Refused
from thranite_operator.plan import Plan
from thranite_operator.spec import InferenceService

logger = logging.getLogger(__name__)

NOT_ALLOWED = (400, 403)  # a quota, an admission webhook, a class that cannot grow its claims
NO_POD_MONITOR_TEXT = (
    "monitoring.podMonitor is enabled, but the cluster has no PodMonitor: install the Prometheus operator"
)


async def carry_out(client: KubeClient, service: InferenceService, plan: Plan) -> Sequence[Problem]:
    """Raises KubeError for what is worth a retry."""
    problems = [_taken(ref) for ref in plan.taken]
    for obj in plan.write:
        ref = Ref.of(obj)
        logger.info("%s/%s: apply %s", service.namespace, service.name, ref)
        try:
            await client.apply(obj)
        except Invalid as refusal:
            problems.append(Problem(INVALID_TEMPLATE, f"{ref} is refused: {refusal.message}"))
        except Refused as refusal:
            if refusal.code in NOT_ALLOWED:
                problems.append(Problem(FORBIDDEN, f"{ref} is refused: {refusal.message}"))
            elif refusal.code == 404 and ref.kind == POD_MONITOR.name:
                problems.append(Problem(NO_POD_MONITOR, NO_POD_MONITOR_TEXT, advisory=True))
            else:
                raise
    for item in plan.delete:
        logger.info("%s/%s: delete %s", service.namespace, service.name, item.ref)
        try:
            await client.delete(KINDS[item.ref.kind], service.namespace, item.ref.name, item.uid)
        except Refused as refusal:
            if refusal.code not in NOT_ALLOWED:
                raise
            text = f"{item.ref} is not to be deleted: {refusal.message}"
            problems.append(Problem(FORBIDDEN, text, advisory=True))
    return problems


def _taken(ref: Ref) -> Problem:
    text = f"{ref} exists and belongs to something else: delete it, or give this InferenceService another name"
    return Problem(NAME_TAKEN, text)
