"""The provisioner behind the default StorageClass: a folder for each claim, the same on all nodes."""

from __future__ import annotations

import http.client
import shutil
import sys
import time
from pathlib import Path

from .addons import PROVISIONER
from .api import Api, ApiError, Object
from .paths import ClusterPaths
from .pki import Pki

CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLASS_ANNOTATION = "volume.kubernetes.io/storage-provisioner"
PAUSE = 1.0  # between attempts when the API server is away


def wants_volume(claim: Object) -> bool:
    annotations = claim["metadata"].get("annotations", {})
    return annotations.get(CLASS_ANNOTATION) == PROVISIONER and "volumeName" not in claim["spec"]


def volume_for(claim: Object, folder: Path) -> Object:
    meta, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    reference |= {key: meta[key] for key in ("name", "namespace", "uid")}
    annotations = {"pv.kubernetes.io/provisioned-by": PROVISIONER}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{meta['uid']}", "annotations": annotations},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec["storageClassName"],
            "claimRef": reference,
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


class Provisioner:
    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder

    def run(self) -> None:
        while True:
            try:
                self._pass()
            except (OSError, http.client.HTTPException, ApiError) as error:
                print(f"trying again: {error}", file=sys.stderr, flush=True)
                time.sleep(PAUSE)

    def _pass(self) -> None:
        """Looks at everything, then waits for a claim to change: a released volume follows a claim's end."""
        self._remove_released()
        claims = self._api.call("GET", CLAIMS)
        for claim in claims["items"]:
            self._provide(claim)
        for event in self._api.watch(CLAIMS, claims["metadata"]["resourceVersion"], seconds=3):
            if event["type"] == "ERROR":
                return
            self._provide(event["object"])
            if event["type"] == "DELETED":
                return

    def _provide(self, claim: Object) -> None:
        if not wants_volume(claim) or "deletionTimestamp" in claim["metadata"]:
            return
        folder = self._folder / f"pvc-{claim['metadata']['uid']}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # pods run as users of their own choice
        try:
            self._api.call("POST", VOLUMES, volume_for(claim, folder))
        except ApiError as error:
            if error.status != 409:  # made at an earlier event
                raise

    def _remove_released(self) -> None:
        for volume in self._api.call("GET", VOLUMES)["items"]:
            annotations = volume["metadata"].get("annotations", {})
            ours = annotations.get("pv.kubernetes.io/provisioned-by") == PROVISIONER
            if ours and volume["status"].get("phase") == "Released":
                shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
                self._api.call("DELETE", f"{VOLUMES}/{volume['metadata']['name']}")


def run_provisioner(name: str) -> int:
    paths = ClusterPaths.of(name)
    Provisioner(Api(Pki(paths.pki), "volumes"), paths.volumes).run()
    return 0
