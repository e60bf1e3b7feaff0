"""The cost of context, on the null device."""

from __future__ import annotations

import argparse
import json

import pytest

from thranite.bench import context
from thranite.bench.context import ContextCost
from thranite.errors import ConfigError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    context.add_arguments(parser)
    return parser.parse_args(arguments)


def test_slope() -> None:
    cost = ContextCost("llama-8b", {1024: 4.5, 32768: 5.5})
    assert cost.slope == pytest.approx(1.0 / 31_744)
    assert cost.line() == "llama-8b: 4.500 ms/step at 1,024, 5.500 ms/step at 32,768; 3.15e-05 ms a token of context"


def test_each_length_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--length", "64", "--length", "16", "--steps", "3", "--max-model-len", "128"]
    assert context.run(parsed("llama-8b", "--device", "null", "--json", *small)) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["step_ms"]) == ["16", "64"]
    assert all(ms > 0 for ms in record["step_ms"].values())


def test_one_length_has_no_slope() -> None:
    with pytest.raises(ConfigError, match="two different lengths"):
        context.run(parsed("--device", "null", "--length", "64"))
