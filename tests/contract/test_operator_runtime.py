"""What the operator renders is what the runtime takes: flags, probes, ports, exit codes. They share no code."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import pytest

from thranite.cli.flags import build
from thranite.config import EngineConfig
from thranite.errors import ExitCode
from thranite.server.admin import build_admin_app
from thranite.supervisor.config import ServeConfig
from thranite_operator import names
from thranite_operator.causes import EXIT_REASONS
from thranite_operator.render import cache, containers, flags
from thranite_operator.render.model import locate
from thranite_operator.render.pod_template import pod_template
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, parse_service

SETTINGS = Settings(runtime_image="thranite:test")
ENGINE = {
    "tensorParallelSize": 2,
    "dtype": "bfloat16",
    "maxModelLen": 8192,
    "maxBatchedTokens": 4096,
    "maxSequences": 128,
    "kvCacheMemoryFraction": "0.85",
    "extraArgs": ["--seed=7", "--no-enable-prefix-caching"],
}
SPECS: dict[str, dict[str, Any]] = {
    "smallest": {"model": {"uri": "hf://a/b"}},
    "all": {
        "model": {"uri": "hf://a/b", "revision": "v1", "name": "served"},
        "engine": ENGINE,
        "resources": {"gpus": 2, "gpuProduct": "NVIDIA-H100-80GB-HBM3"},
        "service": {"apiKeysSecretRef": {"name": "keys"}},
        "drain": {"timeoutSeconds": 60},
    },
    "empty-dir": {"model": {"uri": "hf://a/b", "revision": "x/y", "cache": {"type": "EmptyDir"}}, "engine": ENGINE},
    "cached": {"model": {"uri": "hf://a/b", "cache": {"type": "PVC", "claimName": "c"}}, "engine": ENGINE},
    "cpu": {"model": {"uri": "pvc://models/smollm2"}, "resources": {"gpus": 0}},
    "null": {"model": {"uri": "file:///models/m"}, "engine": {"extraArgs": ["--device", "null"]}},
}


def service(spec: dict[str, Any]) -> InferenceService:
    return parse_service({"metadata": {"name": "x", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec})


def parse(command: list[str]) -> argparse.Namespace:
    program, name, *arguments = command
    assert program == "thranite"
    module = importlib.import_module(f"thranite.cli.{name}")
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def serve(name: str) -> tuple[EngineConfig, ServeConfig]:
    made = service(SPECS[name])
    args = parse(flags.serve(made, locate(made)))
    return build(EngineConfig, args, {}), build(ServeConfig, args, {})


@pytest.mark.parametrize("name", SPECS)
def test_serve_parses(name: str) -> None:
    _, server = serve(name)
    assert (server.port, server.admin_port) == (names.HTTP_PORT, names.ADMIN_PORT)


@pytest.mark.parametrize(
    ("resources", "size"),
    [
        ({"gpuProduct": "NVIDIA-H100-80GB-HBM3"}, ["--gpu-memory=80GB"]),
        ({"gpuProduct": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, ["--gpu-memory=10GB"]),
        ({"gpuProduct": "NVIDIA-A100-SXM4-80GB", "gpuResourceName": "nvidia.com/mig-1g.10gb"}, ["--gpu-memory=10GB"]),
        ({"gpuResourceName": "nvidia.com/mig-3g.40gb"}, ["--gpu-memory=40GB"]),
        ({"gpuProduct": "NVIDIA-GH200-480GB"}, []),
        ({"gpuProduct": "NVIDIA-L4"}, []),
    ],
)
def test_a_model_is_checked_against_its_gpu(resources: dict[str, str], size: list[str]) -> None:
    made = service({"model": {"uri": "hf://a/b"}, "resources": {"gpus": 1, **resources}})
    command = flags.check(made, locate(made))
    assert [arg for arg in command if arg.startswith("--gpu-memory=")] == size
    parse(command)


def test_serve_means_what_the_spec_says() -> None:
    engine, server = serve("all")
    assert (engine.model, engine.revision) == ("a/b", "v1")
    assert (engine.tensor_parallel_size, engine.dtype) == (2, "bfloat16")
    assert (engine.max_model_len, engine.max_num_batched_tokens, engine.max_num_seqs) == (8192, 4096, 128)
    assert (engine.gpu_memory_utilization, engine.seed, engine.enable_prefix_caching) == (0.85, 7, False)
    assert (server.served_model_name, server.drain_timeout) == (("served",), 60)
    assert server.api_key_file == "/etc/thranite/api-keys/api-keys"


@pytest.mark.parametrize(("name", "device"), [("smallest", "auto"), ("cpu", "cpu"), ("null", "null")])
def test_the_device_follows_the_resources_unless_extra_arguments_name_one(name: str, device: str) -> None:
    assert serve(name)[0].device == device


@pytest.mark.parametrize(
    ("name", "model"),
    [("empty-dir", "/mnt/models/a--b--x--y"), ("cached", "/mnt/models/a--b"), ("cpu", "/mnt/models/smollm2")],
)
def test_the_model_is_where_the_volume_is_mounted(name: str, model: str) -> None:
    assert serve(name)[0].model == model
    template = pod_template(service(SPECS[name]), SETTINGS)
    mounts = template["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "model", "mountPath": "/mnt/models", "readOnly": True} in mounts


@pytest.mark.parametrize("name", ["smallest", "all", "empty-dir", "cached"])
def test_check_and_download_parse(name: str) -> None:
    made = service(SPECS[name])
    location = locate(made)
    checked = build(EngineConfig, parse(flags.check(made, location)), {})
    assert (checked.model, checked.revision) == ("a/b", made.spec.model.revision)
    fetched = parse(flags.download(made, location))
    assert (fetched.model, fetched.to, fetched.admin_port) == ("a/b", location.argument, names.ADMIN_PORT)


def test_check_asks_for_the_gpu_whose_size_the_product_tells() -> None:
    made = service(SPECS["all"])
    assert parse(flags.check(made, locate(made))).gpu_memory == "80GB"


def test_drain_parses_and_asks_the_port_that_serve_listens_on() -> None:
    assert parse(flags.drain()).admin_port == serve("smallest")[1].admin_port


def test_the_grace_period_outlasts_the_drain() -> None:
    template = pod_template(service(SPECS["all"]), SETTINGS)
    _, server = serve("all")
    grace = template["spec"]["terminationGracePeriodSeconds"]
    assert grace >= max(server.drain_timeout, server.drain_delay) + 15


def test_probes_and_metrics_are_routes_of_the_admin_port() -> None:
    class Nothing:
        def __getattr__(self, name: str) -> Any:
            return None

    app = build_admin_app(Nothing(), Nothing(), None)  # type: ignore[arg-type]  # routes alone are looked at
    routes = {getattr(route, "path", "") for route in app.routes}
    engine = pod_template(service(SPECS["smallest"]), SETTINGS)["spec"]["containers"][0]
    probes = [engine[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} | {"/metrics"} <= routes
    assert {probe["port"] for probe in probes} == {"admin"}
    assert {"name": "admin", "containerPort": names.ADMIN_PORT, "protocol": "TCP"} in engine["ports"]


def test_exit_codes_are_known_by_name() -> None:
    named = {code for code in ExitCode if code not in (ExitCode.OK, ExitCode.FAILURE)}
    assert set(EXIT_REASONS) == {int(code) for code in named}
    assert EXIT_REASONS[ExitCode.UNSUPPORTED_MODEL] == "UnsupportedModel"
    assert EXIT_REASONS[ExitCode.DOES_NOT_FIT] == "DoesNotFit"
    assert EXIT_REASONS[ExitCode.MODEL_NOT_FOUND] == "ModelNotFound"


def test_the_loader_gives_up_on_what_cannot_heal() -> None:
    final = {int(code) for code in ExitCode} - {ExitCode.OK, ExitCode.FAILURE}
    final -= {ExitCode.ENGINE_DIED, ExitCode.ENGINE_STALLED}
    assert set(cache.FINAL_EXIT_CODES) == final


def test_scratch_folders_are_where_the_variables_point() -> None:
    engine = pod_template(service(SPECS["smallest"]), SETTINGS)["spec"]["containers"][0]
    mounts = {mount["mountPath"] for mount in engine["volumeMounts"]}
    values = {item["name"]: item["value"] for item in engine["env"]}
    assert {containers.TMP, containers.CACHE} <= mounts
    assert values["HF_HOME"].startswith(containers.CACHE)
