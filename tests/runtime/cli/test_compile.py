"""`thranite compile`: the variants an engine needs, found and compiled without a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.support.torch_engine import LLAMA
from thranite.cli import compile as command
from thranite.cli.main import main
from thranite.config import EngineConfig
from thranite.errors import ExitCode
from thranite_kernels.glu import glu_launch
from thranite_kernels.rms_norm import rms_norm_launch
from thranite_kernels.variant import Variant


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path)


def few_variants(*_: object) -> list[Variant]:
    x = torch.empty(8, 96, device="meta")
    norm = rms_norm_launch(x, x[0], 1e-6, residual=None, one_plus=False, out=x)
    return [Variant.of(norm), Variant.of(glu_launch(x, "silu", out=x[:, :48]))]


def test_what_is_compiled_is_found_the_next_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_variants", few_variants)
    monkeypatch.setitem(os.environ, "TRITON_CACHE_DIR", "")  # what the command sets is undone
    arguments = [
        "compile",
        model,
        "--gpu",
        "nvidia a100-80gb",
        "--into",
        str(tmp_path / "new" / "kernels"),
        "--jobs",
        "2",
    ]
    assert main(arguments) == ExitCode.OK
    assert "on A100-80GB: 2 kernels, 2 of them compiled and 0 there before" in capsys.readouterr().out
    assert len(list((tmp_path / "new" / "kernels").glob("*/*.cubin"))) == 2
    assert main(arguments) == ExitCode.OK
    assert "2 kernels, 0 of them compiled and 2 there before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--gpu is missing"),
        (["--gpu", "H9"], "unknown GPU 'H9'"),
        (["--gpu", "H100", "--jobs", "-1"], "--jobs must be 1 or more"),
        (["--gpu", "H100", "--multiprocessors", "0"], "--multiprocessors must be 1 or more"),
        (["--gpu", "T4"], "no kernel is for T4: its compute capability is 7.5"),
        (["--gpu", "H100", "--tensor-parallel-size", "3"], "3"),
    ],
)
def test_what_cannot_be_compiled_for(
    model: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", model, *flags]) == ExitCode.CONFIG
    assert said in capsys.readouterr().err


def test_ranks_need_their_sums_kernels(model: str) -> None:
    alone, ranks, library = (
        command.find_variants(
            EngineConfig(
                model=model, max_num_seqs=4, max_model_len=256, tensor_parallel_size=size, peer_all_reduce=peers
            ),
            "H100",
            132,
        )
        for size, peers in ((1, True), (2, True), (2, False))
    )
    ways = ("packet_all_reduce", "one_shot_all_reduce", "two_shot_all_reduce")
    sums = {f"{way}_kernel" for way in ways} | {f"{ways[0]}_norm_kernel", f"{ways[2]}_norm_kernel"}
    assert not sums & {variant.kernel for variant in (*alone, *library)}
    names = [variant.kernel for variant in ranks]
    assert all(names.count(name) >= 2 for name in sums), sorted(set(names))  # one a rank at least
