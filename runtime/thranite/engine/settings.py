"""What the scheduler and the step loop need to know: resolved, no None, no "auto"."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.engine.admission import QueueLimits
from thranite.engine.constraints import GrammarMaker
from thranite.engine.kv_groups import KVLayout
from thranite.engine.step_cost import StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of one engine. `num_blocks` counts the null page."""

    layout: KVLayout
    num_blocks: int
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool = True
    overlap: bool = False
    priority_aging_seconds: float = 10.0
    max_waiting_requests: int = 4096
    max_waiting_tokens: int = 2**22
    high_priority_share: float = 0.0
    target_inter_token_seconds: float | None = None  # None: all slots may be used
    prompt_time_ratio: float = 0.0  # see `PromptShare`; 0: prompts take what the token budget leaves
    seed: int = 0
    watermark: float = 0.01  # share of blocks kept free at admission, so that running sequences can grow
    step_cost: StepCost = StepCost(floor=4e-3, token=2e-5, prompts=5e-4)  # about llama-8b's
    grammars: GrammarMaker | None = None  # None: requests with a grammar are refused

    @property
    def queue_limits(self) -> QueueLimits:
        return QueueLimits(self.max_waiting_requests, self.max_waiting_tokens, self.high_priority_share)

    @property
    def most_decodes(self) -> int:
        """Of one step: each has a slot and a token."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)
