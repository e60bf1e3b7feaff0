"""Flags and environment variables made from config fields."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import pytest

from thranite.cli.flags import add_flags, build, variable
from thranite.cli.generate import GenerateConfig
from thranite.config import EngineConfig, flag, option
from thranite.errors import ConfigError
from thranite.supervisor.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    model: str
    count: int = option(3, "how many")
    ratio: float | None = option(None, "how much (default: all)")
    cache_bytes: int | None = option(None, "how big")
    loud: bool = option(True, "whether to shout")
    mode: Literal["fast", "slow"] = option("fast", "which way, 100%")
    names: tuple[str, ...] = option((), "what to call it")
    port: int = option(8000, "where")


def parse(cls: type, arguments: list[str], environ: dict[str, str] | None = None) -> Any:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, cls, "all")
    return build(cls, parser.parse_args(arguments), environ or {})


def test_every_kind_of_flag() -> None:
    given = ["m", "--count", "5", "--ratio", "0.5", "--cache-bytes", "2GiB", "--no-loud", "--mode", "slow"]
    config = parse(Sample, [*given, "--names", "a", "--names", "b"])
    assert config == Sample(
        model="m", count=5, ratio=0.5, cache_bytes=2 * 1024**3, loud=False, mode="slow", names=("a", "b")
    )
    assert parse(Sample, ["m"]) == Sample(model="m")


def test_the_command_line_wins_over_the_environment() -> None:
    environ = {"THRANITE_MODEL": "e", "THRANITE_COUNT": "7", "THRANITE_LOUD": "off", "THRANITE_NAMES": "x, y"}
    config = parse(Sample, ["m", "--count", "5"], environ)
    assert (config.model, config.count, config.loud, config.names) == ("m", 5, False, ("x", "y"))
    assert parse(Sample, [], environ).model == "e"
    assert parse(Sample, ["m"], {"THRANITE_COUNT": " "}).count == 3, "an empty variable counts as not set"


def test_falsy_flags_are_not_taken_for_absent_ones() -> None:
    environ = {"THRANITE_COUNT": "7", "THRANITE_LOUD": "on", "THRANITE_RATIO": "1"}
    config = parse(Sample, ["m", "--count", "0", "--no-loud", "--ratio", "0"], environ)
    assert (config.count, config.loud, config.ratio) == (0, False, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("COUNT", "many"), ("RATIO", "x"), ("CACHE_BYTES", "2 potatoes"), ("LOUD", "maybe"), ("MODE", "sideways")],
)
def test_errors_in_the_environment_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"THRANITE_{name}='{value}'"):
        parse(Sample, ["m"], {f"THRANITE_{name}": value})


@pytest.mark.parametrize("bad", [["--count", "x"], ["--mode", "sideways"], ["--cache-bytes", "?"], ["--cou", "1"]])
def test_errors_on_the_command_line_are_usage_errors(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Sample, ["m", *bad])
    assert ended.value.code == 2
    assert bad[0] in capsys.readouterr().err


def test_a_service_called_thranite_does_not_set_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(Sample, ["m"], {"THRANITE_PORT": "tcp://10.0.0.1:8000"})
    assert config.port == 8000
    assert "THRANITE_PORT=tcp://10.0.0.1:8000 names a Kubernetes Service" in capsys.readouterr().err


def test_a_missing_positional_is_named() -> None:
    with pytest.raises(ConfigError, match="MODEL is missing"):
        parse(Sample, [])


def test_help_documents_every_option() -> None:
    for cls in (EngineConfig, ServeConfig, Sample):
        parser = argparse.ArgumentParser()
        add_flags(parser, cls, "all")
        text = " ".join(parser.format_help().split())
        for item in fields(cls):
            assert variable(item.name) in text
            assert str(item.metadata.get("help", "")) in text
            assert item.default_factory or flag(item.name) in text or item.name.upper() in text
    assert "how many (default: 3)" in text
    assert "whether to shout (default: on)" in text
    assert "how much (default: all) [" in text


NEEDS = {"access_log_prompts": ["--access-log"], "ssl_keyfile": ["--ssl-certfile", "cert"]}  # what a flag goes with


def example(name: str, hint: Any) -> tuple[str, Any]:
    """A text that a field takes, other than its default, and the value it stands for."""
    special = {
        "gpu_memory_utilization": ("0.5", 0.5),
        "high_priority_share": ("0.25", 0.25),
        "generation_config": ("none", "none"),
        "server_processes": ("1", 1),
        "log_level": ("debug", "debug"),
        "max_body_bytes": ("4096", 4096),
    }
    if name in special:
        return special[name]
    text = str(hint)
    if "bool" in text:
        return "", None
    if "Literal" in text:
        choice = get_args(hint)[-1]
        return choice, choice
    if "tuple" in text:
        return "a", ("a",)
    if "int" in text:
        return "77", 77
    return ("7.5", 7.5) if "float" in text else ("text", "text")


@pytest.mark.parametrize("cls", [EngineConfig, ServeConfig, GenerateConfig])
def test_every_field_is_set_by_its_flag_and_by_its_variable(cls: type) -> None:
    hints = get_type_hints(cls)
    for item in fields(cls):
        if item.name == "model":
            continue
        base = ["m"] if cls is EngineConfig else NEEDS.get(item.name, [])
        text, value = example(item.name, hints[item.name])
        if value is None:
            value = not item.default
            arguments = [flag(item.name) if value else "--no-" + flag(item.name)[2:]]
            text = "on" if value else "off"
        else:
            arguments = [flag(item.name), text]
        assert getattr(parse(cls, base + arguments), item.name) == value
        assert getattr(parse(cls, base, {variable(item.name): text}), item.name) == value
