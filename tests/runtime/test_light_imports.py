"""What is imported when: light commands without torch, the engine in this process without the server's packages.

Each case runs in an interpreter of its own, because this one has imported everything already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from thranite.cli.main import COMMANDS
from thranite.loader.download_marker import Marker

HEAVY = ("torch", "triton", "transformers")
SERVER_PACKAGES = ("msgspec", "starlette", "uvicorn", "httptools", "llguidance")

RUN_COMMAND = f"""
import sys
from thranite.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "torch_dtype": "float32",
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return tmp_path


def assert_light(done: subprocess.CompletedProcess[str], code: int = 0) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "imported:", done.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_light(name: str) -> None:
    done = run(RUN_COMMAND, name, "--help")
    assert_light(done)
    assert done.stdout.startswith(f"usage: thranite {name}")


def test_check_is_light(model: Path) -> None:
    assert_light(run(RUN_COMMAND, "check", str(model), "--gpu", "H200"))


def test_drain_is_light() -> None:
    assert_light(run(RUN_COMMAND, "drain", "--admin-port", "1"), code=1)


def test_download_is_light(model: Path) -> None:
    Marker("org/model", None, "0" * 40, {}).write(model)
    assert_light(run(RUN_COMMAND, "download", "org/model", "--to", str(model)))


def test_llm_generates_without_the_servers_packages(model: Path) -> None:
    program = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {SERVER_PACKAGES}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Absent())
from thranite import LLM, SamplingParams
llm = LLM(model=sys.argv[1], load_format="dummy", device="cpu", skip_tokenizer_init=True, max_num_seqs=2)
params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, detokenize=False)
[output] = llm.generate({{"prompt_token_ids": [3, 4, 5]}}, params)
print(len(output.outputs[0].token_ids))
assert not set({SERVER_PACKAGES}) & set(sys.modules)
"""
    done = run(program, str(model))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5"


def test_the_null_device_needs_no_torch(model: Path) -> None:
    program = f"""
import sys
from thranite import LLM, SamplingParams
llm = LLM(model=sys.argv[1], device="null", skip_tokenizer_init=True)
params = SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False)
[output] = llm.generate({{"prompt_token_ids": [3, 4, 5]}}, params)
assert len(output.outputs[0].token_ids) == 3
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    done = run(program, str(model))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
