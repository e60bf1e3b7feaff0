"""From what is wished and what is there to what must be written. Pure: no clock, no API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from thranite_operator import names
from thranite_operator.compare import needs_write
from thranite_operator.kinds import CLAIM, DEPLOYMENT, JOB, POD, Object, Ref, View, controller_uid
from thranite_operator.model_state import ModelState, model_state
from thranite_operator.observed import Observed
from thranite_operator.pods import Pod, parse_time
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
    current_job = _current_job(service, observed, job)
    refusal = observed.refusals.get(current_job["metadata"]["uid"]) if current_job else None
    model = model_state(locate(service), current_job, observed.loaders, observed.pods, now, refusal)
    wanted = [_with_owner(obj, service) for obj in _children(service, observed, revision, model, job, settings)]
    taken = [Ref.of(obj) for obj in wanted if _is_foreign(observed.children.get(Ref.of(obj)), service)]
    kept = [obj for obj in wanted if Ref.of(obj) not in taken]
    jobs = {Ref.of(item): item for item in observed.jobs}
    revisions = {Ref.of(item): item for item in observed.revisions}
    known = {**observed.children, **jobs, **revisions}
    return Plan(
        children=kept,
        write=[obj for obj in kept if _must_write(obj, known.get(Ref.of(obj)))],
        delete=[
            *_unwanted_children(service, observed, kept, revision),
            *_spent_jobs(observed, current_job, model),
            *_outdated_revisions(service, observed, kept),
            *(Deletion(Ref(POD.name, pod.name), pod.uid) for pod in _surplus_failures(observed.pods)),
        ],
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
    if observed is None or controller_uid(observed) == service.uid:
        return False
    labels: Mapping[str, str] = observed["metadata"].get("labels", {})
    return not (
        observed["kind"] == CLAIM.name
        and controller_uid(observed) is None
        and labels.get(names.MANAGED_BY) == names.FIELD_MANAGER
        and labels.get(names.INSTANCE) == service.name
    )


def _current_job(service: InferenceService, observed: Observed, planned: Object | None) -> View | None:
    """The loader that is there, unless another must take its place: the claim it filled is gone, be there a new one or
    not; or it has not loaded the model, and would be made another way by now. Such a one may wait without end for an
    image or a node."""
    name = planned["metadata"]["name"] if planned else None
    job = next((item for item in observed.jobs if item["metadata"]["name"] == name), None)
    if planned is None or job is None:
        return None
    completed = job.get("status", {}).get("completionTime")
    if completed is not None:
        return None if _claim_was_lost(service, observed, parse_time(completed)) else job
    template = job["metadata"]["labels"].get(names.TEMPLATE)  # a former operator's have none
    return job if template in (None, planned["metadata"]["labels"][names.TEMPLATE]) else None


def _claim_was_lost(service: InferenceService, observed: Observed, filled: datetime) -> bool:
    """Of a user's own claim nothing is known."""
    if cache.claim(service) is None:
        return False
    claim = observed.child(CLAIM, names.cache_claim(service.name))
    return claim is None or parse_time(claim["metadata"]["creationTimestamp"]) > filled


def _unwanted_children(
    service: InferenceService, observed: Observed, kept: Sequence[Object], revision: Revision
) -> Iterator[Deletion]:
    wanted = {Ref.of(obj) for obj in kept}
    for ref, obj in observed.children.items():
        if ref in wanted or ref.kind == DEPLOYMENT.name or controller_uid(obj) != service.uid or _ends(obj):
            continue
        if ref.kind != CLAIM.name or not _may_be_mounted(ref.name, observed, kept, revision):
            yield Deletion(ref, obj["metadata"]["uid"])


def _may_be_mounted(claim: str, observed: Observed, kept: Sequence[Object], revision: Revision) -> bool:
    """By pods of a former template, or by those that the Deployment makes, or made until it is written: of a claim that
    is being deleted they could not start."""
    if any(
        pod.template != revision.template_hash and pod.phase not in ("Failed", "Succeeded") for pod in observed.pods
    ):
        return True
    deployments: list[View] = [obj for obj in kept if obj["kind"] == DEPLOYMENT.name]
    deployments += [obj for ref, obj in observed.children.items() if ref.kind == DEPLOYMENT.name]
    volumes = (volume for obj in deployments for volume in obj["spec"]["template"]["spec"].get("volumes", ()))
    return any(volume.get("persistentVolumeClaim", {}).get("claimName") == claim for volume in volumes)


def _spent_jobs(observed: Observed, current: View | None, model: ModelState) -> Iterator[Deletion]:
    for job in observed.jobs:
        expired = model.retry_in == 0
        if (job is not current or expired) and not _ends(job):
            yield Deletion(Ref.of(job), job["metadata"]["uid"])


def _outdated_revisions(service: InferenceService, observed: Observed, kept: Sequence[Object]) -> Iterator[Deletion]:
    deployment = observed.child(DEPLOYMENT, service.name) or {"metadata": {}}
    used = {Ref.of(obj).name for obj in kept}
    used |= {str(deployment["metadata"].get("annotations", {}).get(names.REVISION))}
    used |= {str(service.status.get("templateRevision", {}).get("name"))}
    for item in outdated(observed.revisions, used):
        yield Deletion(Ref.of(item), item["metadata"]["uid"])


def _surplus_failures(pods: Sequence[Pod]) -> Sequence[Pod]:
    """All failed pods but the newest; a node that refuses pods would otherwise pile them up without end."""
    failed = sorted((pod for pod in pods if pod.phase == "Failed" and not pod.deleting), key=lambda pod: pod.created)
    return failed[:-FAILED_PODS_KEPT]


def _ends(obj: View) -> bool:
    return "deletionTimestamp" in obj["metadata"]
