"""Where pods find the model: from the uri and the cache to a path, a volume, and who fills it."""

from __future__ import annotations

from dataclasses import dataclass

from thranite_operator import names
from thranite_operator.spec import InferenceService

MOUNT = "/mnt/models"


@dataclass(frozen=True, slots=True)
class Location:
    """`argument`: MODEL of `thranite serve`. `repository`: of the hub, if it comes from there. `claim`: the
    PersistentVolumeClaim that holds it. `loaded_by`: who fetches it; the engine itself where nobody else does."""

    argument: str
    repository: str = ""
    claim: str | None = None
    loaded_by: str = names.ENGINE

    @property
    def from_hub(self) -> bool:
        """Whether the engine itself asks the hub."""
        return bool(self.repository) and self.loaded_by == names.ENGINE

    @property
    def mounted(self) -> bool:
        """Whether pods have a volume of ours for it, at MOUNT."""
        return self.claim is not None or self.loaded_by == "init"


def locate(service: InferenceService) -> Location:
    model = service.spec.model
    scheme, _, rest = model.uri.partition("://")
    if scheme == "file":
        return Location(rest)
    if scheme == "pvc":
        claim, _, path = rest.strip("/").partition("/")
        return Location(f"{MOUNT}/{path}".rstrip("/"), claim=claim)
    if model.cache.type == "None":
        return Location(rest, rest)
    folder = f"{MOUNT}/{_folder(rest, model.revision)}"
    if model.cache.type == "EmptyDir":
        return Location(folder, rest, loaded_by="init")
    return Location(folder, rest, model.cache.claim_name or names.cache_claim(service.name), names.LOADER)


def _folder(repository: str, revision: str | None) -> str:
    """One folder a model and revision, as `thranite download` demands."""
    return "--".join([*repository.split("/"), *([revision.replace("/", "--")] if revision else [])])
