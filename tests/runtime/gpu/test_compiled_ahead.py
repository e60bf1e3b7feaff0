"""A machine's first start compiles nothing where `thranite compile` has been before, on whatever machine that was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.kernel_compilations import Compilation, differences
from thranite.bench.shapes import LLAMA_8B, QWEN3_06B
from thranite.loader.gpus import GPUS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ROOT = Path(__file__).parents[3]
LENGTH = 8192
UTILIZATION = 0.4  # others may test on the same GPU
START = """
import json
import sys
from dataclasses import asdict
from tests.support.kernel_compilations import compilations
from thranite import LLM

options, kernels = json.loads(sys.argv[1]), sys.argv[2]
with compilations() as made:
    LLM(**options, load_format="dummy", skip_tokenizer_init=True, kernel_cache=kernels or None)
print(json.dumps([asdict(one) for one in made]))
"""
AHEAD = """
import json
import sys
from dataclasses import asdict
from tests.support.kernel_compilations import compilations
from thranite.cli.compile import find_variants
from thranite.config import EngineConfig
from thranite.loader.gpus import GPUS

options, gpu, multiprocessors = json.loads(sys.argv[1]), *sys.argv[2:]
with compilations() as made:
    for variant in find_variants(EngineConfig(**options), gpu, int(multiprocessors)):
        variant.launch().compile(GPUS[gpu].capability)
print(json.dumps([asdict(one) for one in made]))
"""


@pytest.mark.parametrize("config", [LLAMA_8B, QWEN3_06B], ids=["llama-8b", "qwen3-0.6b"])
def test_a_first_start(config: dict[str, object], tmp_path: Path) -> None:
    facts = torch.cuda.get_device_properties(0)
    fitting = [name for name in GPUS if all(part in facts.name for part in name.split("-"))]
    if not fitting:
        pytest.skip(f"{facts.name} is not in the table")
    name, count = max(fitting, key=len), str(facts.multi_processor_count)  # an L40S is no L4
    model, kernels = tmp_path / "model", tmp_path / "kernels"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    given = {"max_model_len": LENGTH, "gpu_memory_utilization": UTILIZATION}
    options = json.dumps({"model": str(model), **given})
    flags = [text for key, value in given.items() for text in ("--" + key.replace("_", "-"), str(value))]
    command = ["compile", str(model), "--gpu", name, "--multiprocessors", count, *flags, "--into", str(kernels)]
    assert " 0 there before" in run("-m", "thranite", *command, cache=tmp_path / "unused")
    cold = anew(START, options, "", cache=tmp_path / "cold")
    again = anew(START, options, str(kernels), cache=tmp_path / "brought")
    if again or len(cold) != sum(1 for _ in kernels.glob("*/*.cubin")):
        ahead = compilations_of(AHEAD, options, name, count, cache=kernels)
        told = differences(again, ahead), differences(ahead, cold)
        pytest.fail("compiled by the first start:\n{}\n\ncompiled ahead, beside a start without:\n{}".format(*told))


def anew(program: str, *arguments: str, cache: Path) -> list[Compilation]:
    return [one for one in compilations_of(program, *arguments, cache=cache) if one.anew]


def compilations_of(program: str, *arguments: str, cache: Path) -> list[Compilation]:
    """Those that the program prints last."""
    out = run("-c", program, *arguments, cache=cache)
    return [Compilation(**one) for one in json.loads(out.splitlines()[-1])]


def run(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
