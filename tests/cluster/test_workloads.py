"""Deployments, Services, DNS, probes, volumes, images: what a workload may expect of any cluster."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.cluster import manifests
from tests.cluster.access import ROOT, Cluster, LocalCluster, Namespace, eventually, run

pytestmark = pytest.mark.cluster
# Asks the Service ten times a second and counts what went wrong.
ASK_AGAIN_AND_AGAIN = """
import collections, json, time, urllib.request
seen, end = collections.Counter(), time.monotonic() + {seconds}
while time.monotonic() < end:
    try:
        seen[urllib.request.urlopen("http://web", timeout=3).read().decode().split()[1]] += 1
    except Exception as error:
        seen["failed: " + repr(error)] += 1
    time.sleep(0.1)
print(json.dumps(seen))
"""


def release(number: int) -> list[dict[str, str]]:
    return [{"name": "RELEASE", "value": f"r{number}"}]


def test_a_service_is_reached_by_address_and_by_name(cluster: Cluster, namespace: Namespace) -> None:
    web = manifests.deployment("web", 2, manifests.server_spec(cluster.image))
    client = manifests.pod("client", manifests.pod_spec(cluster.image))
    namespace.apply(web, manifests.service("web"), client)
    namespace.wait_rolled("web")
    namespace.wait_ready("client")
    address = namespace.get("service", "web")["spec"]["clusterIP"]
    pods = {pod["metadata"]["name"] for pod in namespace.pods("web")}
    for host in (address, "web", f"web.{namespace.name}", f"web.{namespace.name}.svc.cluster.local"):
        assert namespace.fetch("client", f"http://{host}/").split()[0] in pods
    found = eventually(lambda: reached(namespace, address, len(pods)), what="both pods behind the Service")
    assert found == pods


def reached(namespace: Namespace, address: str, wanted: int) -> set[str]:
    script = f"""
import urllib.request
print(*{{urllib.request.urlopen("http://{address}", timeout=3).read().decode().split()[0] for _ in range(20)}})
"""
    found = set(namespace.python("client", script).split())
    return found if len(found) == wanted else set()


def test_a_rollout_with_a_draining_prestop_cuts_no_request(cluster: Cluster, namespace: Namespace) -> None:
    drain = {"preStop": {"exec": {"command": ["python", "-c", "import time; time.sleep(3)"]}}}
    pod = {"terminationGracePeriodSeconds": 15}

    def web(number: int) -> manifests.Object:
        spec = manifests.server_spec(cluster.image, lifecycle=drain, env=release(number), pod=pod)
        return manifests.deployment("web", 2, spec)

    namespace.apply(web(1), manifests.service("web"), manifests.pod("client", manifests.pod_spec(cluster.image)))
    namespace.wait_rolled("web")
    namespace.wait_ready("client")
    script = ASK_AGAIN_AND_AGAIN.format(seconds=14)
    asking = cluster.start_kubectl("--namespace", namespace.name, "exec", "client", "--", "python", "-c", script)
    namespace.apply(web(2))
    namespace.wait_rolled("web")
    answers, errors = asking.communicate(timeout=60)
    seen = json.loads(answers)
    assert set(seen) == {"r1", "r2"}, (seen, errors)


def test_a_deployment_scales_up_and_down(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(manifests.deployment("web", 1, manifests.server_spec(cluster.image)))
    namespace.wait_rolled("web")
    for replicas in (3, 1):
        namespace.kubectl("scale", "deployment/web", f"--replicas={replicas}")
        eventually(functools.partial(has_pods, namespace, replicas), what=f"{replicas} pods")
    namespace.wait_rolled("web")


def has_pods(namespace: Namespace, count: int) -> bool:
    return len(namespace.pods("web")) == count


def test_exec_logs_and_port_forward(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(manifests.pod("web", manifests.server_spec(cluster.image)))
    namespace.wait_ready("web")
    assert namespace.kubectl("exec", "web", "--", "sh", "-c", "id -u; exit 0").strip() == "65532"
    forward = cluster.start_kubectl("--namespace", namespace.name, "port-forward", "pod/web", f":{manifests.PORT}")
    try:
        assert forward.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/forwarded", timeout=10) as answer:
            assert answer.read().startswith(b"web")
    finally:
        forward.terminate()
        forward.communicate()
    assert "asked for /forwarded" in namespace.kubectl("logs", "web")


def test_a_container_that_takes_too_much_memory_is_oomkilled(cluster: Cluster, namespace: Namespace) -> None:
    greedy = "held = [bytearray(1 << 20) for _ in range(300)]"
    limited = {"limits": {"memory": "64Mi"}}
    spec = manifests.pod_spec(cluster.image, greedy, resources=limited, pod={"restartPolicy": "Never"})
    namespace.apply(manifests.pod("greedy", spec))
    ended = eventually(lambda: namespace.container_state("greedy").get("state", {}).get("terminated"))
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_a_failing_liveness_probe_restarts_the_container(cluster: Cluster, namespace: Namespace) -> None:
    probe = {"httpGet": {"path": "/", "port": 9}, "periodSeconds": 1, "failureThreshold": 1}
    namespace.apply(manifests.pod("sick", manifests.pod_spec(cluster.image, livenessProbe=probe)))
    eventually(lambda: namespace.container_state("sick").get("restartCount", 0) >= 1, what="a restart")
    assert any("Liveness probe failed" in message for message in namespace.events("Unhealthy"))


def test_a_failing_readiness_probe_takes_the_pod_out_of_the_service(cluster: Cluster, namespace: Namespace) -> None:
    path = "/tmp/not-ready"
    probe = {"exec": {"command": ["sh", "-c", f"test ! -e {path}"]}, "periodSeconds": 1, "failureThreshold": 1}
    namespace.apply(manifests.pod("web", manifests.server_spec(cluster.image, readinessProbe=probe)))
    namespace.apply(manifests.service("web"))
    namespace.wait_ready("web")

    def ready_endpoints() -> list[bool]:
        slices = namespace.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
        return [end["conditions"]["ready"] for found in slices for end in found.get("endpoints") or []]

    eventually(lambda: ready_endpoints() == [True], what="a ready endpoint")
    namespace.kubectl("exec", "web", "--", "touch", path)
    eventually(lambda: ready_endpoints() == [False], what="an endpoint that is not ready")
    assert namespace.container_state("web")["restartCount"] == 0


def test_a_claim_keeps_its_files_across_pods(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(manifests.claim("data"))
    volume = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}], "restartPolicy": "Never"}
    mount = [{"name": "data", "mountPath": "/data"}]
    scripts = {"writer": "open('/data/note', 'w').write('kept')", "reader": "print(open('/data/note').read())"}
    for name, script in scripts.items():
        spec = manifests.pod_spec(cluster.image, script, volumeMounts=mount, pod=volume)
        namespace.apply(manifests.pod(name, spec))
        namespace.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
        if name == "writer":
            namespace.kubectl("delete", "pod", name)
    assert namespace.kubectl("logs", "reader").strip() == "kept"
    volume_name = namespace.get("persistentvolumeclaim", "data")["spec"]["volumeName"]
    namespace.kubectl("delete", "pod/reader", "persistentvolumeclaim/data")
    eventually(lambda: volume_name not in cluster.kubectl("get", "persistentvolumes"), what="the volume's end")


def test_an_image_that_does_not_exist_cannot_be_pulled(namespace: Namespace) -> None:
    spec = manifests.pod_spec("registry.invalid/nothing:1")
    namespace.apply(manifests.pod("lost", spec))

    def reason() -> str:
        return str(namespace.container_state("lost").get("state", {}).get("waiting", {}).get("reason"))

    eventually(lambda: reason() in ("ErrImagePull", "ImagePullBackOff"), what="a failed pull")
    assert any("Failed to pull image" in message for message in namespace.events("Failed"))


def test_the_development_image_shows_the_checkout(local: LocalCluster, namespace: Namespace, tmp_path: Path) -> None:
    namespace.apply(manifests.pod("dev", manifests.pod_spec(local.image)))
    namespace.wait_ready("dev")
    root = Path(__file__).resolve().parents[2]
    note = root / "dev" / "cluster" / f".note-{os.getpid()}"
    note.write_text("seen without an image build")
    try:
        assert namespace.kubectl("exec", "dev", "--", "cat", str(note)) == note.read_text()
    finally:
        note.unlink()
    assert namespace.python("dev", "import sys, yaml; print(sys.prefix)") != "/usr"
    refused = "import os\ntry: open('x', 'w')\nexcept OSError as error: print(error.strerror)"
    assert namespace.python("dev", refused) == "Read-only file system"


def test_an_image_that_buildah_built_runs(local: LocalCluster, namespace: Namespace, tmp_path: Path) -> None:
    settings = f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(settings)
    store = {"CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf")}
    work = run("buildah", "from", "scratch", env=store).strip()
    run("buildah", "copy", work, str((local.tools / "fake-pods").resolve()), "/fake-pods", env=store)
    run("buildah", "config", "--entrypoint", '["/fake-pods", "--control=/tmp/control"]', work, env=store)
    image = "localhost/built-by-buildah:1"
    run("buildah", "commit", "-q", work, image, env=store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", store["CONTAINERS_STORAGE_CONF"])
        local.command("load-image", image)
    probe = {"httpGet": {"path": "/livez", "port": 8001}, "periodSeconds": 1}
    volumes = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    spec = manifests.pod_spec(image, readinessProbe=probe, volumeMounts=mounts, pod=volumes)
    del spec["containers"][0]["command"]
    namespace.apply(manifests.pod("built", spec))
    namespace.wait_ready("built")


def test_kubectl_comes_with_the_cluster(local: LocalCluster) -> None:
    done = subprocess.run(
        [str(local.tools / "kubectl"), "version", "-o", "json"],
        env={"KUBECONFIG": str(local.kubeconfig), "HOME": "/"},
        capture_output=True,
        check=True,
    )
    versions = json.loads(done.stdout)
    assert versions["clientVersion"]["gitVersion"] == versions["serverVersion"]["gitVersion"]


def test_a_volume_over_the_folder_of_the_checkout_does_not_hide_it(local: LocalCluster, namespace: Namespace) -> None:
    """As where a checkout lies in /tmp, and pods have a volume there."""
    above = str(ROOT.parent)
    script = f"import os; print(os.path.ismount({above!r}), os.access({above!r}, os.W_OK), os.listdir({str(ROOT)!r}))"
    volume = {"volumeMounts": [{"name": "above", "mountPath": above}]}
    of_pod = {"volumes": [{"name": "above", "emptyDir": {}}], "restartPolicy": "Never"}
    namespace.apply(manifests.pod("over", manifests.pod_spec(local.image, script, pod=of_pod, **volume)))
    namespace.kubectl("wait", "pod/over", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert re.match(r"True True \[.*'pyproject.toml'", namespace.kubectl("logs", "over"))
