"""Which steps run in which graph, before an idle engine has captured all of them and after. On a pretended GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.torch_engine import LENGTH, LLAMA
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.plan import Prefill, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import SPARE_BYTES, CudaExecutor
from thranite.runner.cuda_graphs import DecodeGraphs, graph_sizes, ready_sizes
from thranite.runner.cuda_mixed_graphs import MixedGraphs
from thranite.runner.mixed_shapes import mixed_shapes, ready_shapes
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite.runner.step_shape import StepShape
from thranite_kernels.target import Target


@pytest.fixture
def executor() -> Iterator[CudaExecutor]:
    spec = load_spec(LLAMA, dtype="bfloat16", max_model_len=LENGTH)
    settings = EngineSettings(
        layout=plan_kv_layout(spec, 64, "bfloat16"),
        num_blocks=100,
        vocab_size=spec.vocab_size,
        max_model_len=LENGTH,
        max_num_seqs=300,
        max_num_batched_tokens=2048,
    )
    with pretended_gpu(Target(90, 132)):
        made = CudaExecutor(Decoder(spec, torch.bfloat16, DEVICE), spec, settings, DEVICE, 256)
        made.capture_graphs()
        yield made


@pytest.mark.parametrize("most", [1, 5, 16, 100, 256, 1024, 4096])
def test_sizes_of_a_ready_engine(most: int) -> None:
    every, ready = graph_sizes(most), ready_sizes(most)
    assert set(ready) <= set(every)
    assert ready[-1] == every[-1] == most  # the largest comes first, and all others fit in its memory
    assert all(after <= 2 * before for before, after in itertools.pairwise(ready))
    assert [size for size in ready if size <= 16] == [size for size in every if size <= 16]


def test_a_step_of_decodes_runs_in_the_next_size_that_is_there(executor: CudaExecutor) -> None:
    graphs = _decode_graphs(executor)
    assert len(graphs.run(list(range(33))).slots) == 48
    while executor.prepare():
        pass
    assert len(graphs.run(list(range(33))).slots) == 40
    assert len(graphs.run(list(range(297))).slots) == 300


def test_rows_of_the_last_step_are_no_part_of_a_later_capture(
    executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run outside of the graph would write where they stood, in pages that are others' by now."""
    graphs = _decode_graphs(executor)
    filled = []
    graphs.run([3, 4])
    monkeypatch.setattr(type(graphs._slots), "fill_", lambda tensor, value: filled.append(value))
    capture = graphs._graphs.capture

    def told(size: int) -> None:
        filled.append(f"capture {size}")
        capture(size)

    monkeypatch.setattr(graphs._graphs, "capture", told)
    executor.prepare()
    assert filled == [-1, "capture 288"]
    assert graphs._present == []


def test_graphs_keep_the_lists_for_their_rows(executor: CudaExecutor) -> None:
    """Padded rows count, and all sizes share scratch."""
    while executor.prepare():
        pass
    graphs, mixed = _decode_graphs(executor), executor._mixed
    assert mixed is not None
    decodes: dict[int, Any] = {size: made.lists for size, made in graphs._graphs._captured.items()}
    beside: dict[StepShape, Any] = {shape: made.lists for shape, made in mixed._graphs._captured.items()}
    for lists in (decodes, {shape.decodes: kept[0] for shape, kept in beside.items()}):
        assert all(plan.rows == rows for rows, plans in lists.items() for plan in plans.values())
        assert len({id(plan.partial) for plans in lists.values() for plan in plans.values()}) == 1
    assert {1, 16, 24, 300} <= decodes.keys()


def test_a_step_with_prompts_runs_in_the_least_shape_that_is_there(executor: CudaExecutor) -> None:
    mixed = executor._mixed
    assert isinstance(mixed, MixedGraphs)
    assert _tokens(mixed, _step(3, 520)) == 576
    assert _tokens(mixed, _step(256, 256)) == 512
    assert _tokens(mixed, _step(0, 1024)) == 1024
    assert _tokens(mixed, _step(0, *[1] * 8)) == 32
    assert _tokens(mixed, _step(0, *[1] * 9)) == 320  # the least with room for so many prompts
    assert _tokens(mixed, _step(257, 1)) == 2048  # and for so many decodes
    assert _tokens(mixed, _step(9, 1016)) == 2048
    while executor.prepare():
        pass
    assert _tokens(mixed, _step(257, 1)) == _tokens(mixed, _step(9, 1016)) == 1536
    assert _tokens(mixed, _step(100, *[30] * 64)) == 2048
    assert _tokens(mixed, _step(100, *[1] * 65)) is None
    mixed.release()
    assert _tokens(mixed, _step(3, 520)) is None  # as before the first capture, when the largest step is measured


def test_steps_that_want_more_of_a_prompt_than_a_token_have_no_graph(executor: CudaExecutor) -> None:
    mixed = executor._mixed
    assert isinstance(mixed, MixedGraphs)
    for changes in ({"samples": (0, 1)}, {"prompt_logprobs": 0}, {"pooling": "mean"}):
        fields: dict[str, Any] = {"samples": (0,), **changes}
        plan = StepPlan(1, prefills=[Prefill(0, 0, range(60), **fields)])
        assert mixed.shape_for(plan) is None
    assert _tokens(mixed, StepPlan(1, decodes=[0])) is None


def test_samples_come_from_the_rows_that_asked(executor: CudaExecutor) -> None:
    """A replay's outputs have a row for every sample that its graph has room for, whatever the split."""
    mixed = executor._mixed
    assert isinstance(mixed, MixedGraphs)
    plan = _step(3, 520)
    shape = mixed.shape_for(plan)
    assert shape is not None
    output = mixed.run(plan, shape)
    assert len(output.hidden) == len(output.slots) == len(output.positions) == 256 + 18
    executor.launch(plan)
    assert executor._steps[-1].logits is not None
    assert len(executor._steps[-1].logits) == 4


def test_after_a_sleep_there_are_the_graphs_that_there_were(executor: CudaExecutor) -> None:
    """Another padded size might round otherwise: the same tokens are to come."""
    executor.prepare()
    graphs = _decode_graphs(executor)
    sizes = list(graphs._sizes)
    graphs.release()
    assert not any(size in graphs._graphs for size in sizes)
    graphs.capture_again()
    assert [size for size in graph_sizes(300) if size in graphs._graphs] == sizes
    assert 288 in sizes
    assert 40 not in sizes


def test_without_memory_to_spare_nothing_more_is_captured(
    executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (SPARE_BYTES - 1, 1 << 40))
    assert not executor.prepare()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (SPARE_BYTES, 1 << 40))
    assert executor.prepare()


def test_every_graph_is_captured_once(executor: CudaExecutor) -> None:
    settings = executor._settings
    mixed = mixed_shapes(settings, executor._model.rank_spec)
    every = [*graph_sizes(settings.most_decodes), *mixed]
    ready = [*ready_sizes(settings.most_decodes), *ready_shapes(mixed)]
    count = 0
    while executor.prepare():
        count += 1
    assert count == len(every) - len(ready) > 10
    assert not executor.prepare()


def _decode_graphs(executor: CudaExecutor) -> DecodeGraphs:
    assert executor._graphs is not None
    return executor._graphs


def _step(decodes: int, *prompts: int) -> StepPlan:
    """Of that many decodes, and prompts of these lengths."""
    prefills = [Prefill(decodes + i, 0, range(length), (decodes + i,)) for i, length in enumerate(prompts)]
    return StepPlan(1, decodes=range(decodes), prefills=prefills)


def _tokens(mixed: MixedGraphs, plan: StepPlan) -> int | None:
    shape = mixed.shape_for(plan)
    return None if shape is None else shape.tokens
