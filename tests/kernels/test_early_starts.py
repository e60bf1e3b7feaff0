"""What kernels that start early (programmatic dependent launch) do before they wait; no result shows it.

Compiling needs a process that does not interpret.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from thranite_kernels.gated_gemm import STAGES, TALL
from thranite_kernels.hopper_decode import DEEP_RING
from thranite_kernels.hopper_gemm import HopperTiles
from thranite_kernels.hopper_pages import PAGE
from thranite_kernels.paged_decode import DecodePlan
from thranite_kernels.paged_prefill import PrefillPlan
from thranite_kernels.prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs_launch
from thranite_kernels.target import STREAM, Target, prefill_config

ROOT = Path(__file__).parents[2]
TARGET = Target(90, 132)

NAMES = (
    "stream_gemm",
    "hopper_gemm M64 N6144",
    "hopper_gemm M64 N4096",
    "gated_gemm N14336",
    "tall gated_gemm N14336",
    "decode H32/8 D128 page 64",
    "decode H32/8 D128 page 32",
)

PRINT_PTX = """
import json, sys
from thranite_kernels.catalog import attention_entries, elementwise_entries, gemm_entries
from thranite_kernels.target import Target, pretended
target = Target(90, 132)
with pretended(target):
    entries = [*attention_entries(target, "decode", True), *elementwise_entries(), *gemm_entries(target)]
firsts = {name: next(e for e in entries if e.name.startswith(name)) for name in sys.argv[1:]}
print(json.dumps({name: entry.launch.compile(90).asm["ptx"] for name, entry in firsts.items()}))
"""


@cache
def compiled() -> dict[str, str]:
    """The catalogue's first kernel of each name, compiled for sm_90 in one process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PRINT_PTX, *NAMES]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    texts: dict[str, str] = json.loads(done.stdout)
    return texts


def ptx(name: str) -> list[str]:
    """One instruction a line."""
    return compiled()[name].splitlines()


def positions(lines: list[str], pattern: str) -> list[int]:
    return [number for number, line in enumerate(lines) if re.search(pattern, line)]


READ = r"\bld\.global"


def test_streaming_products_copy_weights_and_then_wait_for_x() -> None:
    """All stages but one are on their way, by tensor map, when the only wait comes; x is read after it."""
    lines = ptx("stream_gemm")
    (wait,) = positions(lines, r"griddepcontrol\.wait")
    copies = positions(lines, r"cp\.async\.bulk\.tensor")
    assert sum(copy < wait for copy in copies) == STREAM.num_stages - 1
    assert min(positions(lines, READ + r"|cp\.async\.c[ag]")) > wait


def test_products_on_hopper_fill_their_stages_and_then_wait_for_x() -> None:
    """First copies of weights, a box of 32 and one of 16 rows a panel, then the wait, then x's."""
    lines = ptx("hopper_gemm M64 N6144")
    (wait,) = positions(lines, r"griddepcontrol\.wait")
    copies = positions(lines, r"cp\.async\.bulk\.tensor")
    tiles = HopperTiles(48)
    panels = tiles.panels * tiles.stages(64)
    assert sum(copy < wait for copy in copies) == 2 * panels
    assert sum(copy > wait for copy in copies) == panels + 3 * tiles.panels
    start = r"griddepcontrol\.launch_dependents"
    assert not positions(lines, start)  # attention comes next but one
    lines = ptx("hopper_gemm M64 N4096")
    assert positions(lines, start)[0] < positions(lines, r"cp\.async\.bulk\.tensor")[0]


def test_the_gated_product_of_many_rows_waits_for_x_with_its_ring_full_of_weights() -> None:
    """Gate's and up's first, then x's of as many stages; in the loop all three; no kernel begins early behind it."""
    lines = ptx("gated_gemm N14336")
    (wait,) = positions(lines, r"griddepcontrol\.wait")
    copies = positions(lines, r"cp\.async\.bulk\.tensor\S*global\.mbarrier|cp\.async\.bulk\.tensor\S*shared::cluster")
    assert sum(copy < wait for copy in copies) == 2 * STAGES
    assert sum(copy > wait for copy in copies) == STAGES + 3
    assert not positions(lines, r"griddepcontrol\.launch_dependents")


def test_the_one_of_thousands_of_rows_does_too() -> None:
    """Three stages, x in three boxes each."""
    lines = ptx("tall gated_gemm N14336")
    (wait,) = positions(lines, r"griddepcontrol\.wait")
    copies = positions(lines, r"cp\.async\.bulk\.tensor\S*global\.mbarrier|cp\.async\.bulk\.tensor\S*shared::cluster")
    first = [copy for copy in copies if copy < wait]
    assert len(first) == 2 * TALL.stages
    assert len(copies) - len(first) == 3 * TALL.stages + 5
    assert not positions(lines, r"griddepcontrol\.launch_dependents")


def test_decode_reads_lists_before_it_waits() -> None:
    """A work item's eight fields and a page of the block table, past L1; keys are only asked for. Where there is no
    work, some wait as well: what follows must not begin before what came before has ended."""
    lines = ptx("decode H32/8 D128 page 32")
    waits = positions(lines, r"griddepcontrol\.wait")
    assert len(waits) == 2
    wait = max(wait for wait in waits if wait < positions(lines, r"cp\.async\.c[ag]")[0])
    early = [lines[line] for line in positions(lines, READ) if line < wait]
    assert len(early) >= 9
    assert all("ld.global.cg" in line for line in early)
    assert positions(lines, r"prefetch\.L2")[0] < wait < positions(lines, r"cp\.async\.c[ag]")[0]


def test_decode_on_hopper_copies_what_earlier_steps_wrote_before_it_waits() -> None:
    """Keys and values in two panels of 64 dimensions each, of as many pages as its ring holds; what is not yet there is
    copied after the wait, and queries are read. Lists and tables as above."""
    lines = ptx("decode H32/8 D128 page 64")
    copies = positions(lines, r"cp\.async\.bulk\.tensor")
    stages = DEEP_RING // (2 * PAGE * 128 * 2)
    wait = max(wait for wait in positions(lines, r"griddepcontrol\.wait") if wait < copies[-1])
    assert sum(copy < wait for copy in copies) == stages * 4
    assert sum(copy > wait for copy in copies) == stages * 4 + 4
    early = [lines[line] for line in positions(lines, READ) if line < wait]
    assert len(early) == 8 + stages
    assert all("ld.global.cg" in line for line in early)
    assert positions(lines, r"griddepcontrol\.launch_dependents")[0] < min(positions(lines, READ))


def test_writers_of_work_lists_start_nobody_early() -> None:
    """Later kernels read what these write before they wait."""
    n = torch.empty(8, dtype=torch.int32, device="meta")
    cu = torch.empty(9, dtype=torch.int32, device="meta")
    decode = DecodePlan.allocate(8, 32, 8, 128, device="meta", target=TARGET)
    prefill = PrefillPlan.allocate(8, 64, 32, 8, config=prefill_config(TARGET, 128, 2), device="meta")
    state, rows = SlotState(n, n, torch.empty(8, 4, dtype=torch.int32, device="meta")), RowPlan(n, n, n, n, n)
    inputs = StepInputs.allocate(8, 8, "meta")
    for launch in (
        decode.plan_launch(n, n, None),
        prefill.plan_launch(n, n, cu),
        prepare_inputs_launch(state, rows, inputs, block_size=64, advance=True),
    ):
        assert "PDL" not in launch.constants
