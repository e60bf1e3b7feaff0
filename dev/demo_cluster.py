"""The demo: a Kubernetes cluster, the operator in it, a model behind it; a question, a rollout, a failure, the end.

    make demo                     on a cluster of this machine, made for it and gone afterwards
    CLUSTER=current make demo     on the cluster of the current kubectl context

Where this machine cannot run the local cluster, it says why and serves without one (as `make demo-engine`), except
under CI, where that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev import demo
from dev.demo_kube import LOCAL, ROOT, DemoError, Kube, Steps, console, current_cluster, local_cluster
from dev.fetch_smollm2 import fetch, is_present, model_directory

SYSTEM, SERVICE, CLAIM, HELPER = "thranite-system", "smollm2", "models", "demo-helper"
MOUNT = "/mnt/models"
SECONDS = 240  # for any one wait
TELL_EVERY = 30.0
ASK = """
import os, subprocess, sys
try:
    import openai
except ImportError:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", "/tmp/packages", "openai"]
    subprocess.run(pip, check=True)
    sys.path.append("/tmp/packages")
    import openai
client = openai.OpenAI(base_url="http://smollm2.default.svc/v1", api_key="none", timeout=120)
question = {"role": "user", "content": sys.argv[1]}
stream = client.chat.completions.create(model="smollm2", messages=[question], max_tokens=60, temperature=0, stream=True)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""


def main() -> int:
    try:
        model = model_directory()
        if not is_present(model):
            fetch(model)
        if os.environ.get("CLUSTER") == "current":
            with current_cluster() as kube:
                return tell(kube, model)
        build_tools()
        with local_cluster() as kube:
            return tell(kube, model)
    except DemoError as error:
        console.print(f"\n[bold red]the demo cannot go on:[/] {error}", markup=True)
        if os.environ.get("CI") or os.environ.get("CLUSTER") == "current" or isinstance(error, StoryError):
            return 1
        console.print("[bold]So the engine serves without a cluster:")
        return demo.main()


class StoryError(DemoError):
    """The cluster runs, and the story failed in it: no reason to fall back."""


def build_tools() -> None:
    """On the first run this takes minutes, in which the engine alone already answers."""
    if sys.platform != "linux" or os.geteuid() != 0:  # said before anything is built in vain
        raise DemoError("a local cluster needs Linux and root: namespaces, mounts and control groups (try sudo)")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*LOCAL, "build"], stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            console.print("the cluster's programs are being built, once; meanwhile the engine alone:")
            meanwhile(process)
        if process.wait():
            log.seek(0)
            lines = log.read().strip().splitlines()
            raise DemoError(lines[-1].removeprefix("error: ") if lines else "the cluster's programs cannot be built")


def meanwhile(building: subprocess.Popen[bytes]) -> None:
    """The engine's demo, and then a word now and then on what is still to be waited for."""
    try:
        demo.main()
        told, began = 0.0, time.monotonic()
        while building.poll() is None:
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                waited = f"{told - began:.0f} s after the engine's answers"
                console.print(f"the cluster's programs are still being built, {waited} (about 15 minutes on 2 cores)")
            time.sleep(0.5)
    except BaseException:
        building.terminate()
        raise


def tell(kube: Kube, model: Path) -> int:
    refuse_what_is_in_use(kube)
    try:
        story(kube, model)
    except DemoError as error:
        describe(kube)
        raise StoryError(str(error)) from error
    finally:
        clean_up(kube)
    return 0


def refuse_what_is_in_use(kube: Kube) -> None:
    """On somebody's cluster: what the demo removes at its end must be its own."""
    crd = "customresourcedefinition/inferenceservices.thranite.dev"
    found = kube.kubectl("get", crd, f"namespace/{SYSTEM}", "--ignore-not-found", "-o", "name").split()
    found += kube.kubectl("get", f"pod/{HELPER}", f"pvc/{CLAIM}", "--ignore-not-found", "-o", "name").split()
    if found:
        raise StoryError(f"the cluster has {', '.join(found)} already, which the demo would change and then remove")


def story(kube: Kube, model: Path) -> None:
    steps = Steps(7)
    with steps.step("the operator, installed by Helm"):
        install(kube)
    with steps.step("a claim with the model's files"):
        fill_claim(kube, model)
    with steps.step("kubectl apply: two replicas on the CPU"):
        kube.kubectl("apply", "-f", str(ROOT / "examples" / "smollm2.yaml"), show=True)
        watch(kube, rolled_out(kube))
        kube.kubectl("wait", f"infs/{SERVICE}", "--for=condition=Ready", "--timeout=10s", show=True)
    with steps.step("a question, from a pod, with the openai client"):
        ask(kube, "Why is the sky blue?")
    with steps.step("a changed spec rolls out, one replica after the other"):
        patch = '--patch={"spec": {"engine": {"maxModelLen": 1024}}}'
        kube.kubectl("patch", f"infs/{SERVICE}", "--type=merge", patch, show=True)
        watch(kube, rolled_out(kube))
        ask(kube, "What is a trireme?")
    with steps.step("a killed pod comes back"):
        victim = pods(kube)[0]
        kube.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false", show=True)
        watch(kube, lambda status: victim not in pods(kube) and status.get("readyReplicas") == 2)
    with steps.step("what kubectl shows"):
        kube.kubectl("get", "infs", "-o", "wide", show=True)
        events = f"--field-selector=involvedObject.name={SERVICE},involvedObject.kind=InferenceService"
        kube.kubectl("get", "events", events, "-o", "custom-columns=REASON:.reason,MESSAGE:.message", show=True)


def install(kube: Kube) -> None:
    values = ["--set", "crds.keep=false"]  # nothing stays
    for key, image in (("image", kube.images.operator), ("runtimeImage", kube.images.runtime)):
        repository, _, tag = image.rpartition(":")
        values += ["--set", f"{key}.repository={repository},{key}.tag={tag}"]
    chart = str(ROOT / "charts" / "thranite")
    kube.helm("upgrade", "--install", "thranite", chart, "--namespace", SYSTEM, "--create-namespace", *values, "--wait")
    kube.kubectl("get", "pods", "--namespace", SYSTEM, show=True)


def fill_claim(kube: Kube, model: Path) -> None:
    """Through a pod that mounts it: kubectl streams the files, so it works on any cluster."""
    kube.kubectl("apply", "-f", "-", text=HELPER_OBJECTS.format(image=kube.images.client))
    kube.kubectl("wait", f"pod/{HELPER}", "--for=condition=Ready", f"--timeout={SECONDS}s")
    size = sum(path.stat().st_size for path in model.iterdir())
    console.print(f"  {size / 1e6:.0f} MB to pvc://{CLAIM}/{SERVICE}")
    target = f"{MOUNT}/{SERVICE}"
    kube.kubectl("exec", HELPER, "--", "mkdir", "-p", target)
    pack = subprocess.Popen(["tar", "-C", str(model), "-cf", "-", "."], stdout=subprocess.PIPE)
    unpack = kube.start("exec", "-i", HELPER, "--", "tar", "-C", target, "-xf", "-", stdin=pack.stdout)
    assert pack.stdout is not None
    pack.stdout.close()
    if unpack.wait() or pack.wait():
        raise DemoError("the model's files could not be copied into the claim")


def ask(kube: Kube, question: str) -> None:
    console.print(f"  [bold]{question}")
    answer = kube.kubectl("exec", HELPER, "--", "python", "-c", ASK, question)
    console.print("".join(f"  {line}\n" for line in answer.splitlines()), end="", markup=False)


def watch(kube: Kube, done: Callable[[dict[str, Any]], bool]) -> None:
    """Until `done` says so of the status; every change of the reason for waiting is told."""
    told, give_up = "", time.monotonic() + SECONDS
    while True:
        found = kube.get("infs", SERVICE)
        status = found.get("status", {})
        counts = f"{status.get('readyReplicas', 0)} of {found['spec']['replicas']} ready"
        _, reason, message = condition(status, "Progressing")
        text = f"{counts}, {reason}: {message}" if reason else counts
        if text != told:
            console.print(f"  {text}", markup=False)
            told = text
        if done(status):
            return
        if time.monotonic() > give_up:
            raise DemoError(f"not within {SECONDS} s; last: {text}")
        time.sleep(0.5)


def rolled_out(kube: Kube) -> Callable[[dict[str, Any]], bool]:
    generation = kube.get("infs", SERVICE)["metadata"]["generation"]

    def check(status: dict[str, Any]) -> bool:
        return status.get("observedGeneration") == generation and condition(status, "Progressing")[0] == "False"

    return check


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    for item in status.get("conditions", ()):
        if item["type"] == kind:
            return item["status"], item["reason"], item["message"]
    return "", "", ""


def pods(kube: Kube) -> list[str]:
    selector = f"app.kubernetes.io/instance={SERVICE},app.kubernetes.io/component=engine"
    items = kube.get("pods", "-l", selector)["items"]
    return [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]


def describe(kube: Kube) -> None:
    """What a reader of the failure wants to know."""
    for words in (
        ("get", "infs,pods,pvc", "-o", "wide"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("logs", "--namespace", SYSTEM, "deployment/thranite", "--tail=40"),
        ("logs", "--selector", f"app.kubernetes.io/instance={SERVICE}", "--tail=40", "--prefix"),
    ):
        try:
            kube.kubectl(*words, show=True)
        except DemoError as error:
            console.print(f"  {error}", markup=False)


def clean_up(kube: Kube) -> None:
    console.print("\n[bold]cleaning up" + ("" if kube.temporary else ", and waiting until all is gone"))
    options = ("--ignore-not-found", "--wait=false" if kube.temporary else f"--timeout={SECONDS}s")
    for words in (
        ("delete", f"infs/{SERVICE}", f"pod/{HELPER}", f"pvc/{CLAIM}", *options),
        ("delete", "namespace", SYSTEM, *options),
    ):
        try:
            if words[1] == "namespace":
                kube.helm("uninstall", "thranite", "--namespace", SYSTEM, "--ignore-not-found")
            kube.kubectl(*words)
        except DemoError as error:
            console.print(f"  {error}", markup=False)


HELPER_OBJECTS = f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{{{name: {CLAIM}}}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{{{requests: {{{{storage: 2Gi}}}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{{{name: {HELPER}}}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    fsGroup: 10001
    seccompProfile: {{{{type: RuntimeDefault}}}}
  containers:
    - name: helper
      image: {{image}}
      command: [python, -c, "import time; time.sleep(3600)"]
      env: [{{{{name: HOME, value: /tmp}}}}]
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {{{{drop: [ALL]}}}}
      volumeMounts: [{{{{name: models, mountPath: {MOUNT}}}}}]
  volumes:
    - name: models
      persistentVolumeClaim: {{{{claimName: {CLAIM}}}}}
"""

if __name__ == "__main__":
    sys.exit(main())
