"""Steps that touch every kernel specialisation once, before the engine is ready.

Their block tables are empty, so all they write goes to the null page, and the slots are void until a sequence starts.
"""

from __future__ import annotations

from collections.abc import Iterator

from thranite.engine.plan import Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.sampling_params import TokenParams

PLAIN = TokenParams(max_tokens=1, seed=0, temperature=0.7)
TRUNCATED = TokenParams(max_tokens=1, seed=0, temperature=0.7, top_p=0.9, top_k=50, min_p=0.05)
SHAPED = TokenParams(max_tokens=1, seed=0, repetition_penalty=1.1, logit_bias=((1, 1.0),), logprobs=5)


def warm_up_steps(settings: EngineSettings) -> Iterator[StepPlan]:
    """A prompt of few tokens, one of many, and decodes beside prompts, under every kind of sampling."""
    longest = min(settings.max_num_batched_tokens, settings.max_model_len - 1)
    for params in (PLAIN, TRUNCATED, SHAPED):
        for count in sorted({1, min(16, longest), min(1000, longest)}):
            yield _prompt(0, count, params, settings)
            if settings.max_num_seqs > 1 and longest > 4:
                yield _beside_a_prompt(params, settings)


def _prompt(slot: int, count: int, params: TokenParams, settings: EngineSettings) -> StepPlan:
    tokens = [i % settings.vocab_size for i in range(count)]
    scores = 1 if params is SHAPED and count > 1 else None
    prefill = Prefill(slot, 0, tokens, (slot,), scores, tokens[1:] if scores else ())
    return StepPlan(step=0, starts=[SlotStart(slot, 0, params, tokens, count, 0)], prefills=[prefill])


def _beside_a_prompt(params: TokenParams, settings: EngineSettings) -> StepPlan:
    other = _prompt(1, 3, params, settings)
    return StepPlan(step=0, decodes=[0], starts=other.starts, prefills=other.prefills)
