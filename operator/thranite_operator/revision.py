"""Pinning: which rendering of the pod template a spec is served from.

A rendered template is stored in a ControllerRevision under the hash of the spec fields that enter it. The same fields
find it again, so neither a new operator's rendering nor a scaled service rolls pods, and a reverted spec rolls back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thranite_operator import names
from thranite_operator.hashing import canonical, digest
from thranite_operator.kinds import CONTROLLER_REVISION, Object, View
from thranite_operator.parsing import template_inputs
from thranite_operator.render.objects import child
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, Spec

KEPT = 10


@dataclass(frozen=True, slots=True)
class Revision:
    """`template`: with its own hash as a label. `newer`: this operator renders the same fields otherwise."""

    name: str
    template: Object
    operator_version: str
    newer: bool
    new: Object | None = None  # the ControllerRevision to create; None if it exists

    @property
    def template_hash(self) -> str:
        label: str = self.template["metadata"]["labels"][names.TEMPLATE]
        return label


def spec_hash(spec: Spec) -> str:
    return digest(template_inputs(spec))


def choose(service: InferenceService, rendered: Object, stored: Sequence[View], settings: Settings) -> Revision:
    """The stored rendering of these fields, the newest if there are several; else, or by policy Latest, `rendered`."""
    marked = mark(rendered)
    key = spec_hash(service.spec)
    known = [item for item in stored if item["metadata"].get("labels", {}).get(names.SPEC_HASH) == key]
    same = [item for item in known if canonical(item["data"]) == canonical(marked)]
    latest = service.spec.rollout.upgrade_policy == "Latest"
    chosen = max(same if latest else known, key=lambda item: int(item["revision"]), default=None)
    if chosen is not None:
        return existing(chosen, newer=chosen not in same)
    number = max((int(item["revision"]) for item in stored), default=0) + 1
    obj = _controller_revision(service, marked, key, number, settings)
    return Revision(obj["metadata"]["name"], marked, settings.version, False, obj)


def existing(item: View, *, newer: bool) -> Revision:
    meta = item["metadata"]
    version = meta.get("annotations", {}).get(names.OPERATOR_VERSION, "unknown")
    return Revision(meta["name"], item["data"], version, newer)


def outdated(stored: Sequence[View], used: set[str]) -> list[View]:
    """Revisions beyond the newest ones, never one in use."""
    newest_first = sorted(stored, key=lambda item: -int(item["revision"]))
    return [item for item in newest_first[KEPT:] if item["metadata"]["name"] not in used]


def mark(rendered: Object) -> Object:
    """With a label by which pods of this very template are known."""
    meta: dict[str, Any] = rendered["metadata"]
    labels = {**meta["labels"], names.TEMPLATE: digest(rendered)[:10]}
    return {**rendered, "metadata": {**meta, "labels": labels}}


def _controller_revision(
    service: InferenceService, template: Object, key: str, number: int, settings: Settings
) -> Object:
    name = names.revision(service.name, digest([key, template]))
    obj = child(CONTROLLER_REVISION, service, name, names.ENGINE, data=template, revision=number)
    obj["metadata"]["labels"][names.SPEC_HASH] = key
    obj["metadata"]["annotations"] = {names.OPERATOR_VERSION: settings.version}
    return obj
