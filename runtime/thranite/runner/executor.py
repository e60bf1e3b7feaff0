"""A torch device as an `Executor`: slot state, inputs, forward pass, sampling. One code path for CPU and CUDA."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thranite.attention.base import KVCache
from thranite.attention.torch import TorchAttention
from thranite.engine.plan import Bitmasks, StepPlan, StepResult
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.models.spec import ModelSpec
from thranite.runner.host_weights import HostWeights
from thranite.runner.inputs import StepInputs, build_inputs
from thranite.runner.sampler import SampledTokens, Sampler
from thranite.runner.sampling_transfer import upload
from thranite.runner.slots import Slots
from thranite.runner.step_scores import Pooled, PromptScores, begin_pooling, begin_prompt_scores, finish_step


@dataclass(slots=True)
class _Step:
    """A launched step. `hidden`: of its samples. `sampled` is None until `sample`, and for a step without samples."""

    inputs: StepInputs | None
    hidden: Tensor | None
    prompt_scores: PromptScores
    pooled: Pooled | None
    sampled: SampledTokens | None = None


class TorchExecutor:
    """Owns the KV cache and all per-slot state on one device.

    `prompt_logprob_rows`: rows of logits alive at once while a prompt is scored; the memory plan counts them.
    """

    def __init__(
        self,
        model: Decoder,
        spec: ModelSpec,
        settings: EngineSettings,
        device: torch.device,
        prompt_logprob_rows: int = 256,
    ) -> None:
        self._prompt_logprob_rows = prompt_logprob_rows
        self._model = model
        self._device = device
        self.cache = KVCache(settings.layout, settings.num_blocks, device)
        self._attention = TorchAttention(spec, self.cache)
        self._sampler = Sampler(settings.vocab_size, settings.max_num_seqs, device)
        self._slots = Slots(settings, device)
        self._steps: deque[_Step] = deque()
        self._weights: HostWeights | None = None  # while it sleeps

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> None:
        if plan.copies:
            self.cache.copy_pages(plan.copies)
        self._slots.start(plan.starts)
        self._sampler.start(plan.starts)
        self._slots.update(plan.blocks)
        if not plan.num_tokens:
            self._steps.append(_Step(None, None, {}, None))
            return
        inputs = build_inputs(plan, self._slots, self._device)
        rows = None if plan.reads_prompts else inputs.sample_rows
        hidden = self._model(inputs.input_ids, inputs.batch, self._attention, rows)
        sampled = hidden if rows is not None or inputs.sample_rows is None else hidden[inputs.sample_rows]
        scores = begin_prompt_scores(plan, inputs.prefill_starts, hidden, self._model.logits, self._prompt_logprob_rows)
        self._steps.append(_Step(inputs, sampled, scores, begin_pooling(plan, inputs.prefill_starts, hidden)))

    @torch.inference_mode()
    def sample(self, masks: Bitmasks) -> None:
        step = self._steps[-1]
        inputs, hidden = step.inputs, step.hidden
        step.hidden = None
        if inputs is None or hidden is None or not inputs.sample_slots:
            return
        logits = self._model.logits(hidden)
        step.sampled = self._sampler.sample(logits, inputs.sample_slots, inputs.sample_positions, masks)
        slots = upload(np.asarray(inputs.sample_slots, np.int64), self._device)
        self._slots.last_tokens[slots] = step.sampled.tokens

    def collect(self) -> StepResult:
        step = self._steps.popleft()
        return finish_step(step.sampled, step.prompt_scores, step.pooled)

    def prepare(self) -> bool:
        return False

    def sleep(self) -> int:
        self._weights = None if self._device.type == "cpu" else HostWeights(self._model)
        self.cache.release()
        return self.cache.num_bytes

    def wake(self) -> int:
        if self._weights is not None:
            self._weights.restore()
            self._weights = None
        self.cache.restore()
        return 0

    def close(self) -> None:
        self._steps.clear()
        del self._attention, self._sampler, self._slots, self.cache, self._model
