"""From what is wished and what is there to what must be written. Pure: no clock, no API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from thranite_operator import names
from thranite_operator.compare import needs_write
from thranite_operator.kinds import CLAIM, DEPLOYMENT, JOB, POD, Object, Ref, View
from thranite_operator.model_state import ModelState, model_state
from thranite_operator.observed import Observed
from thranite_operator.pods import Pod
from thranite_operator.render import availability, cache, network, workload
from thranite_operator.render.model import locate
from thranite_operator.render.objects import owned
from thranite_operator.render.pod_template import pod_template
from thranite_operator.revision import Revision, choose, existing, outdated
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService

FAILED_PODS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Deletion:
    ref: Ref
    uid: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`children`: all that should be there, in the order of their making. `write`: those of them that must be
    written. `taken`: names that somebody else's objects have. `revision`: what pods are to be made from; `serving`:
    what they are made from while the model is still being loaded."""

    children: Sequence[Object]
    write: Sequence[Object]
    delete: Sequence[Deletion]
    taken: Sequence[Ref]
    revision: Revision
    model: ModelState


def make_plan(service: InferenceService, observed: Observed, settings: Settings, now: datetime) -> Plan:
    revision = choose(service, pod_template(service, settings), observed.revisions, settings)
    job = cache.loader_job(service, settings)
    observed_job = _find_job(observed, job)
    model = model_state(locate(service), observed_job, observed.loaders, observed.pods, now)
    wanted = [_with_owner(obj, service) for obj in _children(service, observed, revision, model, job, settings)]
    taken = [Ref.of(obj) for obj in wanted if _is_foreign(observed.children.get(Ref.of(obj)), service)]
    kept = [obj for obj in wanted if Ref.of(obj) not in taken]
    jobs = {Ref.of(item): item for item in observed.jobs}
    revisions = {Ref.of(item): item for item in observed.revisions}
    known = {**observed.children, **jobs, **revisions}
    return Plan(
        children=kept,
        write=[obj for obj in kept if _must_write(obj, known.get(Ref.of(obj)))],
        delete=list(_deletions(service, observed, kept, model)),
        taken=taken,
        revision=revision,
        model=model,
    )


def _children(
    service: InferenceService,
    observed: Observed,
    revision: Revision,
    model: ModelState,
    job: Object | None,
    settings: Settings,
) -> Iterator[Object]:
    optional = (
        cache.claim(service),
        job,
        availability.disruption_budget(service),
        network.network_policy(service, settings),
        network.pod_monitor(service),
    )
    yield availability.service_account(service)
    yield network.api_service(service)
    yield network.headless_service(service)
    yield from (obj for obj in optional if obj is not None)
    if revision.new is not None:
        yield revision.new
    serving = _serving(service, observed, model) if model.blocking else revision
    if serving is not None:
        yield workload.deployment(service, serving.template, serving.name)


def _serving(service: InferenceService, observed: Observed, model: ModelState) -> Revision | None:
    """What present pods are made from, kept until the new model is there; None where nothing serves yet, so that no
    GPU is asked for."""
    deployment = observed.child(DEPLOYMENT, service.name)
    name = (deployment or {}).get("metadata", {}).get("annotations", {}).get(names.REVISION)
    stored = next((item for item in observed.revisions if item["metadata"]["name"] == name), None)
    return existing(stored, newer=False) if stored else None


def _with_owner(obj: Object, service: InferenceService) -> Object:
    """A claim to be retained has no owner."""
    retained = obj["kind"] == CLAIM.name and service.spec.model.cache.retain
    return obj if retained else owned(obj, service)


def _must_write(obj: Object, observed: View | None) -> bool:
    """Jobs are written once: their templates cannot change."""
    return observed is None if obj["kind"] == JOB.name else needs_write(obj, observed)


def _is_foreign(observed: View | None, service: InferenceService) -> bool:
    """Not ours: neither owned by this very service nor a claim that a former one of its name retained."""
    if observed is None or _owner(observed) == service.uid:
        return False
    labels: Mapping[str, str] = observed["metadata"].get("labels", {})
    return not (
        observed["kind"] == CLAIM.name
        and _owner(observed) is None
        and labels.get(names.MANAGED_BY) == names.FIELD_MANAGER
        and labels.get(names.INSTANCE) == service.name
    )


def _owner(obj: View) -> str | None:
    return next((owner["uid"] for owner in obj["metadata"].get("ownerReferences", ()) if owner.get("controller")), None)


def _find_job(observed: Observed, job: Object | None) -> View | None:
    name = job["metadata"]["name"] if job else None
    return next((item for item in observed.jobs if item["metadata"]["name"] == name), None)


def _deletions(
    service: InferenceService, observed: Observed, kept: Sequence[Object], model: ModelState
) -> Iterator[Deletion]:
    wanted = {Ref.of(obj) for obj in kept}
    for ref, obj in observed.children.items():
        unwanted = ref not in wanted and ref.kind != DEPLOYMENT.name
        if unwanted and _owner(obj) == service.uid and not _ends(obj):
            yield Deletion(ref, obj["metadata"]["uid"])
    for job in observed.jobs:
        expired = model.retry_in == 0
        if (Ref.of(job) not in wanted or expired) and not _ends(job):
            yield Deletion(Ref.of(job), job["metadata"]["uid"])
    deployment = observed.child(DEPLOYMENT, service.name) or {"metadata": {}}
    used = {ref.name for ref in wanted} | {str(deployment["metadata"].get("annotations", {}).get(names.REVISION))}
    used |= {str(service.status.get("templateRevision", {}).get("name"))}
    for item in outdated(observed.revisions, used):
        yield Deletion(Ref.of(item), item["metadata"]["uid"])
    for pod in _surplus_failures(observed.pods):
        yield Deletion(Ref(POD.name, pod.name), pod.uid)


def _surplus_failures(pods: Sequence[Pod]) -> Sequence[Pod]:
    """All failed pods but the newest; a node that refuses pods would otherwise pile them up without end."""
    failed = sorted((pod for pod in pods if pod.phase == "Failed" and not pod.deleting), key=lambda pod: pod.created)
    return failed[:-FAILED_PODS_KEPT]


def _ends(obj: View) -> bool:
    return "deletionTimestamp" in obj["metadata"]
