"""`thranite compile`: the variants an engine needs, found and compiled without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.kernel_compilations import compilations, differences
from tests.support.torch_engine import LLAMA
from thranite.cli import compile as command
from thranite.cli.main import main
from thranite.config import EngineConfig
from thranite.errors import ExitCode
from thranite_kernels.glu import glu_launch
from thranite_kernels.rms_norm import rms_norm_launch
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm_launch
from thranite_kernels.target import Target, pretended
from thranite_kernels.variant import Variant, compile_variant


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


def test_a_kernel_begins_early_where_its_launch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the products of few rows, that of one row does and the other never, whatever the GPU can."""
    monkeypatch.setitem(os.environ, "TRITON_CACHE_DIR", str(tmp_path))
    weight, scratch = torch.empty(64, 512, dtype=torch.bfloat16, device="meta"), GemmScratch.allocate(64, "meta")
    for rows in (1, 8):
        x, out = weight.new_empty(rows, 512), weight.new_empty(rows, 64)
        with pretended(Target(90, 132)):
            variant = Variant.of(skinny_gemm_launch(x, weight, scratch, bias=None, out=out))
        assert compile_variant(variant, 90)
    early = {path.stem: json.loads(path.read_text())["launch_pdl"] for path in tmp_path.glob("*/skinny_*_kernel.json")}
    assert early == {"skinny_vector_kernel": True, "skinny_dot_kernel": False}


SHARERS = (  # of functions that name constants
    "all_reduce:one_shot_all_reduce_kernel",
    "packet_sum:packet_all_reduce_kernel",
    "paged_decode:paged_decode_kernel",
    "paged_prefill:paged_prefill_kernel",
)
KEYS = """
import sys
from importlib import import_module
keys = {}
for path in sys.argv[1:]:
    module, kernel = path.split(":")
    keys[path] = getattr(import_module(f"thranite_kernels.{module}"), kernel).cache_key
print(sorted(keys.items()))
"""


def test_a_kernel_is_found_whatever_was_launched_before_it() -> None:
    """Kernels that share functions have the same keys in either order. Triton before 3.8 alone gives them others."""
    orders = [(sys.executable, "-c", KEYS, *order) for order in (SHARERS, SHARERS[::-1])]
    running = [subprocess.Popen(order, stdout=subprocess.PIPE, text=True) for order in orders]
    there, back = (process.communicate()[0] for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert there == back


def test_what_sets_two_compilations_apart_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test on a GPU tells it, where a start compiles what should have been there."""
    monkeypatch.setitem(os.environ, "TRITON_CACHE_DIR", str(tmp_path))
    x = torch.empty(8, 97, device="meta")
    with compilations() as ahead:
        compile_variant(Variant.of(glu_launch(x[:, :96], "silu", out=x[:, :48])), 80)
    with compilations() as again:
        compile_variant(Variant.of(glu_launch(x[:, :96], "silu", out=x[:, 1:49])), 80)
    assert [one.anew for one in (*ahead, *again)] == [True, True]
    name, fact = differences(again, ahead).splitlines()
    assert name == "glu_kernel:"
    assert fact == "  known of y_ptr: [], ahead [['tt.divisibility', 16]]"
    assert differences(again, []).endswith("  no other was compiled ahead")


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
