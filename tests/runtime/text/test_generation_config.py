from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thranite.errors import CheckpointError, ConfigError
from thranite.sampling_params import SamplingParams
from thranite.text.generation_config import read_default_sampling, sampling_defaults


def test_recommended_sampling_by_our_names(tmp_path: Path) -> None:
    config = {
        "temperature": 0.6,
        "top_k": 20,
        "max_new_tokens": 2048,
        "do_sample": True,
        "eos_token_id": [1],
        "top_p": None,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = sampling_defaults(tmp_path)
    assert defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 2048}
    SamplingParams(**defaults)


def test_no_file_no_defaults(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path)


@pytest.mark.parametrize("wrong", [{"top_p": 7}, {"temperature": "warm"}])
def test_recommended_sampling_is_checked_at_the_start(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 3, **wrong}))
    assert read_default_sampling("none", str(tmp_path)) == {}
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read_default_sampling("auto", str(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 3}))
    assert read_default_sampling("auto", str(tmp_path)) == {"top_k": 3}
    unknown: Any = "vllm"
    with pytest.raises(ConfigError, match="--generation-config must be one of auto, none; got 'vllm'"):
        read_default_sampling(unknown, str(tmp_path))
