"""A machine's first start compiles nothing where `thranite compile` has been before, on whatever machine that was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thranite.bench.shapes import LLAMA_8B, QWEN3_06B
from thranite.loader.gpus import GPUS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

START = """
import sys
from thranite import LLM
from thranite_kernels.compilations import CompiledAnew

model, kernels = sys.argv[1:]
with CompiledAnew() as anew:
    LLM(model, load_format="dummy", skip_tokenizer_init=True, max_model_len=8192, kernel_cache=kernels or None)
print(anew.count)
"""


@pytest.mark.parametrize("config", [LLAMA_8B, QWEN3_06B], ids=["llama-8b", "qwen3-0.6b"])
def test_a_first_start(config: dict[str, object], tmp_path: Path) -> None:
    facts = torch.cuda.get_device_properties(0)
    fitting = [name for name in GPUS if all(part in facts.name for part in name.split("-"))]
    if not fitting:
        pytest.skip(f"{facts.name} is not in the table")
    name = max(fitting, key=len)  # an L40S is no L4
    model, kernels = tmp_path / "model", tmp_path / "kernels"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    command = ["compile", str(model), "--gpu", name, "--multiprocessors", str(facts.multi_processor_count)]
    out = run("-m", "thranite", *command, "--max-model-len", "8192", "--into", str(kernels), cache=tmp_path / "unused")
    assert " 0 there before" in out
    count = sum(1 for _ in kernels.glob("*/*.cubin"))
    assert run("-c", START, str(model), "", cache=tmp_path / "cold").split()[-1] == str(count)
    assert run("-c", START, str(model), str(kernels), cache=tmp_path / "brought").split()[-1] == "0"


def run(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
