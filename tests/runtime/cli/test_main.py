"""`thranite` itself: commands, exit codes, one message a failure."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from thranite import LLM, __version__
from thranite.cli import generate, main, serve
from thranite.config import EngineConfig
from thranite.errors import CheckpointError, ConfigError, DoesNotFit, EngineDead, ExitCode, InvalidRequest
from thranite.supervisor import main as supervisor
from thranite.supervisor.config import ServeConfig


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], []):
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"thranite {__version__}" in out
    for name, command in main.COMMANDS.items():
        assert f"  {name}" in out
        assert command.summary in out


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["serv"])
    assert ended.value.code == ExitCode.USAGE
    assert "serv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad", "do better"), ExitCode.CONFIG),
        (CheckpointError("bad", "do better"), ExitCode.CHECKPOINT),
        (DoesNotFit("bad", "do better"), ExitCode.DOES_NOT_FIT),
        (EngineDead("bad; do better"), ExitCode.FAILURE),
        (InvalidRequest("bad; do better", "n"), ExitCode.USAGE),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    error: Exception, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    module = SimpleNamespace(add_arguments=lambda parser: None, run=fail, __doc__="A command.")
    monkeypatch.setitem(sys.modules, "thranite.cli.failing", module)
    monkeypatch.setitem(main.COMMANDS, "fail", main.Command("thranite.cli.failing", "fails"))
    assert main.main(["fail"]) == code
    said = capsys.readouterr().err
    assert said.startswith("thranite: error: ")
    assert "do better" in said
    assert "Traceback" not in said


def test_serve_hands_both_configs_to_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[EngineConfig, ServeConfig]] = []

    def take(engine: EngineConfig, server: ServeConfig) -> int:
        taken.append((engine, server))
        return 8

    monkeypatch.setattr(supervisor, "serve", take)
    assert main.main(["serve", "m", "--max-model-len", "64", "--port", "9000", "--served-model-name", "n"]) == 8
    [(engine, server)] = taken
    assert engine == EngineConfig(model="m", max_model_len=64)
    assert server == ServeConfig(port=9000, served_model_name=("n",))


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_refused_option_reaches_the_termination_log(
    by_flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    if not by_flag:
        monkeypatch.setenv("THRANITE_TERMINATION_LOG_PATH", str(log))
    options = ["--termination-log-path", str(log)] if by_flag else []
    assert main.main(["serve", "m", "--gpu-memory-utilization", "2", *options]) == ExitCode.CONFIG
    assert "--gpu-memory-utilization" in log.read_text()
    assert "--gpu-memory-utilization" in capsys.readouterr().err


def test_serve_without_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THRANITE_MODEL", raising=False)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    with pytest.raises(ConfigError, match="MODEL"):
        serve.run(parser.parse_args([]), {})


@pytest.mark.parametrize("command", [name for name in main.COMMANDS if name != "bench"])
def test_every_option_is_also_a_variable(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main([command, "--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
    assert len(flags) > 1
    assert [name for name in flags if f"[THRANITE_{name.upper().replace('-', '_')}]" not in text] == []


def test_generate_offers_exactly_the_options_of_llm() -> None:
    """But for the model's recommended sampling: the command says all of it itself."""
    offered = {field.name for field in fields(EngineConfig)} - generate.SHARED_ONLY
    taken = set(inspect.signature(LLM.__init__).parameters) - {"self", "generation_config", "progress"}
    assert offered == taken
