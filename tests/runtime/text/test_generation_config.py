from __future__ import annotations

import json
from pathlib import Path

import pytest

from thranite.errors import CheckpointError
from thranite.sampling_params import SamplingParams
from thranite.text.generation_config import sampling_defaults


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


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path)
