"""The model directory that the cluster tests serve from; needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pod_hub import models
from thranite.cli.main import main

MODEL = Path(__file__).parents[1] / "e2e" / "tiny-model"


def test_the_runtime_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(MODEL), "--device", "null"]) == 0
    assert "2,048 tokens" in capsys.readouterr().out


def test_the_hub_has_it() -> None:
    assert models()["test/tiny"]["config.json"]
