"""What the tests of autoscaling need of a service: clients in a pod, more or fewer as they are told, and its sizes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.cluster.access import Namespace, eventually
from tests.cluster.manifests import pod, pod_spec

CLIENTS = 20
TOLD = "/told"  # whoever is to be told looks for files there
# A new connection for each request, so that new pods get some. Every stream is read to its end.
SCRIPT = """
import openai, os, threading, time
def told(word): return os.path.exists(os.path.join("{told}", word))
def ask():
    client = openai.OpenAI(base_url="{url}", api_key="none", max_retries=0, timeout={timeout})
    options = dict(prompt={prompt}, max_tokens={tokens}, stream=True, extra_body=dict(ignore_eos=True))
    stream = client.completions.create(model="x", **options)
    reasons = [choice.finish_reason for chunk in stream for choice in chunk.choices]
    assert "length" in reasons, reasons
    client.close()
good, bad = [], []
def work(always):
    while not (always or told("more") or told("stop")): time.sleep(0.1)
    while not told("stop") and (always or not told("less")):
        try: ask(); good.append(1)
        except Exception as error: bad.append(repr(error))
threads = [threading.Thread(target=work, args=(index < {few},)) for index in range({all})]
[thread.start() for thread in threads]
print("asking", flush=True)
[thread.join() for thread in threads]
print("good", len(good), "bad", len(bad), bad[:3], flush=True)
"""


@dataclass(frozen=True)
class Clients:
    """`few` ask all the time, the others of CLIENTS between `more` and `less`; one request after the other. `prompt`:
    text or token ids. `timeout`: seconds that a client waits for anything."""

    namespace: Namespace
    few: int = 1
    prompt: str | list[int] = field(default_factory=lambda: [1, 2, 3])
    tokens: int = 40
    timeout: int = 60

    def start(self) -> None:
        url = f"http://x.{self.namespace.name}.svc/v1"
        own = {"few": self.few, "prompt": repr(self.prompt), "tokens": self.tokens, "timeout": self.timeout}
        script = SCRIPT.format(url=url, told=TOLD, all=CLIENTS, **own)
        mounts = [{"name": "told", "mountPath": TOLD}]
        volumes = {"volumes": [{"name": "told", "emptyDir": {}}]}
        spec = pod_spec(self.namespace.cluster.image, script, volumeMounts=mounts, pod=volumes)
        self.namespace.apply(pod("client", {**spec, "restartPolicy": "Never"}))
        eventually(lambda: "asking" in self._log(), what="the clients' first word")

    def more(self) -> None:
        self._tell("more")

    def less(self) -> None:
        self._tell("less")

    def stop(self) -> tuple[int, int, str]:
        """How many requests were answered whole, how many were not, and what became of some of those."""
        self._tell("stop")
        pattern = re.compile(r"^good (\d+) bad (\d+) (.*)$", re.MULTILINE)
        wait = 2.0 * self.timeout
        words = eventually(lambda: pattern.findall(self._log()), timeout=wait, what="the clients' last word")
        good, bad, errors = words[0]
        return int(good), int(bad), errors

    def _tell(self, word: str) -> None:
        self.namespace.python("client", f"open('{TOLD}/{word}', 'w').close()")

    def _log(self) -> str:
        return self.namespace.kubectl("logs", "client")


class Sizes:
    """What `look` says, from the first of its watches to the last, without repeats."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self.seen: list[int] = []

    def now(self) -> int:
        size = self._look()
        if not self.seen or self.seen[-1] != size:
            self.seen.append(size)
        return size

    def watch(self, seconds: float) -> set[int]:
        """Those of the next seconds."""
        found = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found.add(self.now())
            time.sleep(0.3)
        return found


def turns(sizes: list[int]) -> int:
    """How often it went down after it had gone up, or up after down."""
    steps = [after > before for before, after in pairwise(sizes) if after != before]
    return sum(first != second for first, second in pairwise(steps))


def wished(namespace: Namespace) -> int:
    return int(namespace.get("infs", "x")["spec"]["replicas"])
