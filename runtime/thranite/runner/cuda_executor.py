"""A CUDA GPU as an `Executor`: steps replay graphs unless they are large or ask for much; none waits."""

from __future__ import annotations

import gc
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from thranite.attention.base import KVCache
from thranite.attention.triton import TritonAttention
from thranite.engine.plan import Bitmasks, StepPlan, StepResult
from thranite.engine.settings import EngineSettings
from thranite.layers.tuned_products import tuning
from thranite.models.decoder import Decoder
from thranite.models.spec import ModelSpec
from thranite.runner.cuda_draw import CudaDraw
from thranite.runner.cuda_graphs import DecodeGraphs, DecodeOutput, padded_rows
from thranite.runner.cuda_inputs import eager_step, prefill_starts
from thranite.runner.cuda_mixed_graphs import MixedGraphs, MixedOutput
from thranite.runner.cuda_sampler import CudaSampler
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.cuda_warm_up import full_step, warm_up_steps
from thranite.runner.host_weights import HostWeights
from thranite.runner.sampling_transfer import HostCopies
from thranite.runner.step_scores import Pooled, PromptScores, begin_pooling, begin_prompt_scores, finish_step

SPARE_BYTES = 512 << 20  # several times what a graph takes beyond the pool that is there


@dataclass(slots=True)
class _Step:
    """A launched step: the logits of its samples and where they go, until `sample`."""

    plan: StepPlan
    logits: Tensor | None
    slots: Tensor | None
    positions: Tensor | None
    prompt_scores: PromptScores
    pooled: Pooled | None = None
    sampled: CudaDraw | None = None
    ended: HostCopies | None = None  # what to wait for where nothing is sampled


class CudaExecutor:
    """Owns the KV cache, all per-slot state and the graphs of one GPU.

    `prompt_logprob_rows`: rows of logits alive at once while a prompt is scored; the memory plan counts them.
    """

    def __init__(
        self,
        model: Decoder,
        spec: ModelSpec,
        settings: EngineSettings,
        device: torch.device,
        prompt_logprob_rows: int,
        *,
        eager: bool = False,
    ) -> None:
        self._model = model
        self._settings = settings
        self._block_size = settings.layout.block_size
        self._prompt_logprob_rows = prompt_logprob_rows
        self.cache = KVCache(settings.layout, settings.num_blocks, device)
        self._state = CudaSlots(settings, device)
        self._attention = TritonAttention(spec, self.cache, settings.max_model_len + 1, model.dtype, device)
        self._sampler = CudaSampler(spec.vocab_size, settings.max_num_seqs, device, self._state.last_tokens)
        self._graphs: DecodeGraphs | None = None
        self._mixed: MixedGraphs | None = None
        if not eager:
            self._graphs = DecodeGraphs(model, self._attention, self._state, self._block_size, settings.most_decodes)
            self._mixed = MixedGraphs(model, self._attention, self._state, settings)
        self._steps: deque[_Step] = deque()
        self._device = device
        self._weights: HostWeights | None = None  # while it sleeps
        self._freed = 0

    def capture(self) -> None:
        """Make ready, and prepare all else, at once."""
        self.capture_graphs()
        self.warm_up()
        while self.prepare():
            pass

    def capture_graphs(self) -> None:
        """Capture the graphs that an engine needs to be ready, unless eager."""
        if self._graphs is not None and self._mixed is not None:
            self._graphs.capture()
            self._mixed.capture()

    def warm_up(self) -> None:
        """Run every kind of eager step once: nothing compiles later, and the fullest one is timed."""
        for plan in warm_up_steps(self._settings):
            self._run_eagerly(plan)
        with tuning():
            self._run_eagerly(full_step(self._settings))

    def _run_eagerly(self, plan: StepPlan) -> None:
        self._launch(plan, None)
        self.sample({})
        self.collect()

    def prepare(self) -> bool:
        """Capture one more graph, where every rank has memory to spare: others may have taken what was planned for."""
        if self._graphs is None or self._mixed is None:
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        if self._model.communicator.least([free])[0] < SPARE_BYTES:
            return False
        return self._graphs.capture_next() or self._mixed.capture_next()

    def launch(self, plan: StepPlan) -> None:
        self._launch(plan, self._mixed)

    @torch.inference_mode()
    def _launch(self, plan: StepPlan, mixed: MixedGraphs | None) -> None:
        if plan.copies:
            self.cache.copy_pages(plan.copies)
        self._state.apply(plan.starts, plan.blocks)
        self._state.advance(plan)
        self._sampler.start(plan.starts)
        if not plan.num_tokens:
            self._steps.append(_Step(plan, None, None, None, {}))
        elif mixed is not None and (shape := mixed.shape_for(plan)) is not None:
            self._replayed(plan, mixed.run(plan, shape))
        elif plan.prefills or self._graphs is None:
            self._launch_eager(plan)
        else:
            self._replayed(plan, self._graphs.run(list(plan.decodes)))
        step = self._steps[-1]
        if step.logits is None and plan.num_tokens:
            step.ended = HostCopies([self._state.lengths[:1]])

    def _replayed(self, plan: StepPlan, output: DecodeOutput | MixedOutput) -> None:
        count = len(plan.sample_slots)
        rows = padded_rows(count, len(output.hidden))
        logits = self._model.raw_logits(output.hidden[:rows])[:count] if count else None
        slots, positions = output.slots[:count], output.positions[:count]
        self._steps.append(_Step(plan, logits, slots, positions, {}))

    def _launch_eager(self, plan: StepPlan) -> None:
        step = eager_step(plan, self._state, self._attention, self._block_size)
        rows = None if plan.reads_prompts else step.sample_rows
        hidden = self._model(step.input_ids, step.batch, self._attention, rows)
        sampled = hidden if rows is not None else hidden[step.sample_rows]
        logits = self._model.raw_logits(sampled) if len(sampled) else None
        starts = prefill_starts(plan)
        scores = begin_prompt_scores(plan, starts, hidden, self._model.logits, self._prompt_logprob_rows)
        self._steps.append(
            _Step(
                plan,
                logits,
                step.sample_slots,
                step.sample_positions,
                scores,
                begin_pooling(plan, starts, hidden),
            )
        )

    @torch.inference_mode()
    def sample(self, masks: Bitmasks) -> None:
        step = self._steps[-1]
        if step.logits is None or step.slots is None or step.positions is None:
            return
        # A sample's token stands where the slot's context ends; a fork starts at its prompt's end.
        rows = (step.plan.sample_slots, self._state.host_lengths)
        step.sampled = self._sampler.draw(step.logits, rows, step.slots, step.positions, masks)
        step.logits = None

    def collect(self) -> StepResult:
        step = self._steps.popleft()
        if step.ended is not None:
            step.ended.wait()
        return finish_step(step.sampled, step.prompt_scores, step.pooled)

    def sleep(self) -> int:
        """Graphs hold addresses of weights and pages: they go, and are captured again."""
        held = torch.cuda.memory_reserved(self._device)
        if self._graphs is not None and self._mixed is not None:
            self._graphs.release()
            self._mixed.release()
        self._attention.forget_addresses()
        self._weights = HostWeights(self._model)
        self.cache.release()
        self._give_back()
        self._freed = held - torch.cuda.memory_reserved(self._device)
        return self._freed

    def wake(self) -> int:
        """All ranks wake, or none does."""
        missing = max(self._freed - torch.cuda.mem_get_info(self._device)[0], 0)
        missing = -self._model.communicator.least([-missing])[0]
        if missing:
            return missing
        if self._weights is not None:
            self._weights.restore()
            self._weights = None
        self.cache.restore()
        if self._graphs is not None and self._mixed is not None:
            self._graphs.capture_again()
            self._mixed.capture()
        torch.cuda.synchronize(self._device)
        return 0

    def _give_back(self) -> None:
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Give the GPU's memory back: graphs and views hold pages as much as the cache does."""
        self._steps.clear()
        del (
            self._graphs,
            self._mixed,
            self._attention,
            self._sampler,
            self._state,
            self.cache,
            self._model,
            self._weights,
        )
        self._give_back()
