"""What is said of a model beside the first, on the command line and to the admin port."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.server.test_admin import Target
from tests.support.asgi_calls import AppCalls
from thranite.config import EngineConfig
from thranite.errors import ConfigError, InvalidRequest, Rejected
from thranite.ipc.control import AddModel, ModelPhase, ModelState
from thranite.server.admin import build_admin_app
from thranite.server.admin_models import model_routes
from thranite.server.errors import ModelUnknown
from thranite.server.metrics_source import MetricsSource
from thranite.server.model_options import ModelDefaults

FIRST = EngineConfig(
    model="first", device="cpu", tokenizer="t", revision="r", max_model_len=99, seed=7, gpu_memory_utilization=0.5
)
DEFAULTS = ModelDefaults(FIRST, pooling="mean", generation_config="none")


def test_it_takes_the_options_of_the_command_line_but_those_of_the_first_model() -> None:
    made = DEFAULTS.define("m", "models/m", {})
    assert made.config == EngineConfig(model="models/m", device="cpu", seed=7, gpu_memory_utilization=0.5)
    assert (made.pooling, made.generation_config, made.tool_call_parser) == ("mean", "none", "auto")


def test_the_command_line_s_text(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    made = DEFAULTS.parse(
        "m=models/m?gpu-memory-utilization=0.25&max_model_len=64&kv_cache_memory_bytes=2MiB&enforce_eager=true"
        f"&chat_template={tmp_path / 't.jinja'}&tool_call_parser=hermes"
    )
    wanted = EngineConfig(
        model="models/m", device="cpu", seed=7, gpu_memory_utilization=0.25, max_model_len=64,
        kv_cache_memory_bytes=2**21, enforce_eager=True,
    )  # fmt: skip
    assert (made.name, made.config) == ("m", wanted)
    assert (made.chat_template, made.tool_call_parser) == ("{{ messages }}", "hermes")
    assert DEFAULTS.parse("a/b=c/d=e").config.model == "c/d=e"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models/m", "write NAME=MODEL"),
        ("=models/m", "a model's name has 1 to 256"),
        ("m=", "say which model"),
        ("m=x?max_model_len", "bad query field"),
        ("m=x?max_model_len=many", "max_model_len|int"),
        ("m=x?max_model_len=0", "--max-model-len must be at least 1"),
        ("m=x?model=y", "'model' is no option"),
        ("m=x?device=tpu", "device|cuda"),
        ("m=x?kv_cache_memory_bytes=lots", "lots"),
        ("m=x?chat_template=/none", "/none cannot be read"),
        ("m=x?tool_call_parser=guess", "--tool-call-parser must be one of"),
        ("b=/m?block_size=x&max_num_seqs=2", "in field block_size"),
        ("b=/m?device=tpu", "in field device"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--add-model .*({message})"):
        DEFAULTS.parse(text)


def test_a_value_of_the_wrong_type_names_its_field() -> None:
    with pytest.raises(InvalidRequest) as found:
        DEFAULTS.define("m", "x", {"gpu_memory_utilization": "0.5"})
    assert found.value.param == "gpu_memory_utilization"


def test_a_chat_template_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% if %}")
    with pytest.raises(InvalidRequest, match=r"t\.jinja: the chat template does not parse: line 1") as found:
        DEFAULTS.define("m", "x", {"chat_template": str(tmp_path / "t.jinja")})
    assert found.value.param == "chat_template"


class Models(Target):
    """Notes what it is asked."""

    def model_states(self) -> list[ModelState]:
        return [ModelState("m", ModelPhase.LOADING, "models/m", "load weights", 0.25)]

    def load_model(self, definition: AddModel) -> ModelState:
        if definition.name == "twice":
            raise Rejected("there is one already", "exists")
        self.asked.append((definition.name, definition.config.model, definition.config.max_model_len))
        return ModelState(definition.name, ModelPhase.QUEUED)

    def unload_model(self, name: str, seconds: float | None) -> ModelState:
        if name == "none":
            raise ModelUnknown(name, ["m"])
        self.asked.append((name, seconds))
        return ModelState(name, ModelPhase.UNLOADING)


def port(models: Models) -> AppCalls:
    return AppCalls(build_admin_app(models, MetricsSource("m"), "k", model_routes(models, DEFAULTS)))


KEY = {"authorization": "Bearer k"}


def test_the_admin_port_s_form() -> None:
    models = Models()
    calls = port(models)
    assert calls.get("/models").status_code == 401
    (state,) = calls.get("/models", headers=KEY).json()["models"]
    assert (state["phase"], state["stage"], state["progress"]) == ("loading", "load weights", 0.25)
    loaded = calls.post("/models/load", headers=KEY, json={"name": "n", "model": "x", "max_model_len": 5})
    assert (loaded.status_code, loaded.json()["phase"]) == (202, "queued")
    for body in ({"name": "n"}, {"name": "n", "deadline_seconds": 3}):
        assert calls.post("/models/unload", headers=KEY, json=body).json()["phase"] == "unloading"
    assert models.asked == [("n", "x", 5), ("n", None), ("n", 3.0)]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("load", b"{", 400, None),
        ("load", b'{"name": "n"}', 400, "model"),
        ("load", b'{"model": "n"}', 400, "name"),
        ("load", b'{"name": 3, "model": "n"}', 400, "name"),
        ("load", b'{"name": "n", "model": "x", "max_model_len": "5"}', 400, "max_model_len"),
        ("load", b'{"name": "n", "model": "x", "colour": 1}', 400, "colour"),
        ("load", b'{"name": "n", "model": "\\ud800"}', 400, None),
        ("load", b'{"name": "n", "model": "x", "chat_template": "\\u0000"}', 400, "chat_template"),
        ("load", b'{"name": "twice", "model": "x"}', 409, None),
        ("unload", b"", 400, "name"),
        ("unload", b'{"name": "n", "deadline_seconds": -1}', 400, "deadline_seconds"),
        ("unload", b'{"name": "n", "force": true}', 400, "force"),
        ("unload", b'{"name": "none"}', 404, "model"),
    ],
)
def test_errors_are_answers(path: str, body: bytes, status: int, param: str | None) -> None:
    models = Models()
    answer = port(models).post(f"/models/{path}", headers=KEY, content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert models.asked == []
