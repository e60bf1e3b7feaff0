"""`thranite-operator explain` against a real API server and a running operator; its trace replayed by `simulate`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.apiserver import ApiServer, free_ports
from tests.support.autoscaling_world import FAST, World, play, until
from tests.support.kube import KubeApi
from tests.support.manifests import ready, service
from tests.support.pretended_runtimes import Exported
from thranite_operator.autoscaling.pages import pages
from thranite_operator.main import main


def explain(api_server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the kubernetes client looks for its configuration when it is imported."""
    command = [sys.executable, "-m", "thranite_operator", "explain", *arguments]
    environment = {**os.environ, "KUBECONFIG": str(api_server.kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_decision_is_explained_and_its_trace_decides_the_same(
    api_server: ApiServer, api: KubeApi, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    told: list[str] = []

    async def scene(world: World) -> None:
        world.export(Exported(waiting=9), Exported(waiting=8))
        await world.start(ready(), ready(), replicas=2, autoscaling=FAST)
        await until(lambda: len(world.section.get("decisions", ())) == 1)
        app = web.Application()
        app.add_routes(pages(world.autoscaler))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        (port,) = free_ports(1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        url = f"http://127.0.0.1:{port}"
        done = await asyncio.to_thread(
            explain, api_server, f"{namespace}/x", "--operator-url", url, "--trace", str(trace)
        )
        await runner.cleanup()
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)

    play(api_server, api, namespace, scene)
    (printed,) = told
    assert printed.startswith(f"{namespace}/x: Internal, 1 to 8; 4 replicas, 2 ready\n")
    assert "  AbleToScale=True ReadyForNewScale: " in printed
    assert printed.count("2 → 4: queue 8.5 per replica over 4") >= 2  # of the status, and of the running operator
    assert "QueueDepth " in printed
    assert "2 pods report, 0 do not" in printed
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(api.get("InferenceService", namespace, "x")))
    assert main(["simulate", str(trace), "--spec", str(spec)]) == 0
    assert "1 changes, 0 decided otherwise" in capsys.readouterr().out


def test_without_the_operator_the_status_is_told(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    api.create(service(namespace, replicas=3, autoscaling=FAST))
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = explain(api_server, f"{namespace}/x", "--operator-url", nowhere)
    assert done.returncode == 0, done.stderr
    assert f"{namespace}/x: Internal, 1 to 8; 3 replicas, 0 ready" in done.stdout
    assert f"The running operator knows more, but {nowhere}/autoscaling/{namespace}/x does not answer" in done.stdout


def test_a_service_that_is_not_there(api_server: ApiServer, namespace: str) -> None:
    done = explain(api_server, f"{namespace}/x")
    assert done.returncode == 1
    assert f"there is no InferenceService {namespace}/x" in done.stderr


@pytest.mark.parametrize("text", ["x", "/x", "default/"])
def test_a_name_without_a_namespace(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", text]) == 2
    assert "is not NAMESPACE/NAME" in capsys.readouterr().err
