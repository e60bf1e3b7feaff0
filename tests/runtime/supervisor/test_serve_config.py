from __future__ import annotations

import dataclasses
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from thranite.errors import ConfigError
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.listeners import bind, private_directory, url


def test_every_option_is_documented() -> None:
    assert all(len(item.metadata["help"]) > 5 for item in dataclasses.fields(ServeConfig))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "--port must lie between"),
        ({"port": 8001}, "--port and --admin-port are both 8001"),
        ({"drain_delay": -1.0}, "--drain-delay"),
        ({"drain_timeout": float("nan")}, "--drain-timeout"),
        ({"stall_timeout": 0.1}, "--stall-timeout must be at least 1.0 s"),
        ({"server_processes": 0}, "--server-processes must lie between 1 and 64, got 0"),
        ({"log_level": "loud"}, "--log-level must be one of debug, info"),
        ({"generation_config": "some"}, "--generation-config must be one of auto, none"),
        ({"tokenizer_threads": 0}, "--tokenizer-threads"),
        ({"max_body_bytes": 10}, "--max-body-bytes"),
    ],
)
def test_contradictions_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**options)


def test_keys_come_from_files(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    assert ServeConfig().api_keys() == ()
    found = ServeConfig(api_key="zero", api_key_file=str(keys)).api_keys()
    assert {key.value for key in found} == {"zero", "one", "two"}
    with pytest.raises(ConfigError, match="must hold one key"):
        ServeConfig(admin_key_file=str(keys)).admin_key()
    keys.write_text("  \n")
    with pytest.raises(ConfigError, match="--admin-key-file"):
        ServeConfig(admin_key_file=str(keys)).admin_key()
    with pytest.raises(ConfigError, match="--admin-key-file"):
        ServeConfig(admin_key_file=str(tmp_path / "none")).admin_key()
    keys.write_text("root\n")
    assert ServeConfig(admin_key_file=str(keys)).admin_key() == "root"
    with pytest.raises(ConfigError, match="--chat-template"):
        ServeConfig(chat_template=str(tmp_path / "none")).chat_template_source()


def test_a_taken_port_is_refused_by_name() -> None:
    with bind("127.0.0.1", 0, "port") as taken:
        port = taken.getsockname()[1]
        assert url(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"--admin-port {port}: 127.0.0.1 cannot be bound"):
            bind("127.0.0.1", port, "admin_port")


def test_the_runtime_directory_is_private_and_removed(tmp_path: Path) -> None:
    with private_directory(str(tmp_path / "run")) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path / "engine.sock"))
    assert not path.exists()
    with pytest.raises(ConfigError, match="too long for a socket"), private_directory(str(tmp_path / ("x" * 100))):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--runtime-dir"), private_directory(str(tmp_path / "file")):
        pass
