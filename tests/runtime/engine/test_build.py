"""What a start says when its device does not keep what it promised."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.support.tiny_models import TINY_MODELS, build, save
from thranite import LLM
from thranite.errors import DoesNotFit
from thranite.loader import checkpoint


def test_memory_that_others_take_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError("Tried to allocate 252.00 MiB. Process 600 has 14.84 GiB memory in use.")

    model = TINY_MODELS["llama-biased-tied"]
    directory = save(model, build(model), tmp_path)
    monkeypatch.setattr(checkpoint, "load_model", refuse)
    with pytest.raises(DoesNotFit, match=r"Process 600 has 14\.84 GiB") as caught:
        LLM(str(directory), device="cpu", skip_tokenizer_init=True)
    assert "--gpu-memory-utilization" in str(caught.value.hint)
