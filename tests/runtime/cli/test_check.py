"""`thranite check`: a plan from config.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thranite.cli.main import main
from thranite.errors import ExitCode
from thranite.loader.gpus import GPUS, gpu

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [128001, 128009],
    "bos_token_id": 128000,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


def test_a_model_that_fits(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model, "--gpu", "NVIDIA H200"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "H200, 139.8 GiB" in out
    assert "15.0 GiB (bfloat16)" in out
    assert "131,072 tokens" in out


def test_a_model_that_does_not_fit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model, "--gpu", "L4", "--max-model-len", "131072"]) == ExitCode.DOES_NOT_FIT
    said = capsys.readouterr().err
    assert "8.03 billion x 2 bytes" in said
    assert "--max-model-len" in said
    assert main(["check", model, "--gpu-memory", "8GB"]) == ExitCode.DOES_NOT_FIT


def test_ranks_are_planned_each_for_itself(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the weights' matrices, all of the norms; half of each KV page."""
    assert main(["check", model, "--gpu", "H200"]) == ExitCode.OK
    alone = capsys.readouterr().out
    assert main(["check", model, "--gpu", "H200", "--tensor-parallel-size", "2"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "one of 2 ranks" in out
    assert "7.5 GiB (bfloat16)" in out
    assert "64 tokens and 8.0 MiB" in alone
    assert "64 tokens and 4.0 MiB" in out
    assert main(["check", model, "--gpu-memory", "16GB", "--max-model-len", "8192"]) == ExitCode.DOES_NOT_FIT
    assert "pass --tensor-parallel-size 2" in capsys.readouterr().err
    fits = ["--gpu-memory", "16GB", "--max-model-len", "8192", "--tensor-parallel-size", "2"]
    assert main(["check", model, *fits]) == ExitCode.OK
    assert main(["check", model, "--tensor-parallel-size", "8"]) == ExitCode.OK
    assert "split over 8 GPUs" in capsys.readouterr().out


def test_without_a_gpu_there_is_a_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model]) == ExitCode.OK
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(GPUS) <= set(lines)
    assert "no kernels" in lines["T4"]
    assert "131,072" in lines["H200"]


def test_other_devices(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model, "--device", "null"]) == ExitCode.OK
    assert "null device" in capsys.readouterr().out
    assert main(["check", model, "--device", "null", "--gpu", "L4"]) == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--tensor-parallel-size", "3"], ExitCode.CONFIG, "1, 2, 4, 8, 16, 32"),
        (["--gpu", "Voodoo 2"], ExitCode.CONFIG, "unknown GPU"),
        (["--gpu", "L4", "--gpu-memory", "1GB"], ExitCode.CONFIG, "two GPUs"),
        (["--gpu-memory", "lots"], ExitCode.CONFIG, "amount of memory"),
    ],
)
def test_refusals(
    model: str, options: list[str], code: ExitCode, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", model, *options]) == code
    assert said in capsys.readouterr().err


def test_models_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "absent")]) == ExitCode.MODEL_NOT_FOUND
    (tmp_path / "config.json").write_text("{")
    assert main(["check", str(tmp_path)]) == ExitCode.CHECKPOINT
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B | {"architectures": ["Mamba"]}))
    assert main(["check", str(tmp_path)]) == ExitCode.UNSUPPORTED_MODEL
    assert "LlamaForCausalLM" in capsys.readouterr().err


def test_gpus_are_found_however_they_are_spelt() -> None:
    assert gpu("nvidia h200") == gpu("H200") == gpu("h-200")
    assert gpu("A100-80GB").total_bytes > gpu("A100 40gb").total_bytes
