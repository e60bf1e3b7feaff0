"""Steps that touch every kernel specialisation once, before the engine is ready.

Triton compiles a kernel anew for a new type, for an integer of 1 or a multiple of 16, for an address that is no
multiple of 16 bytes and for each constant. What of it varies from step to step: the logits' type (as the head gives
them, or fp32 once a row is biased or penalised), whether a row is truncated, the room for alternatives
(`cuda_rows.TOP_WIDTHS`), and the tiles of the kernels that choose them by the number of tokens (1, up to 16, up to 512,
more; of fused products by `FUSED_BOUNDS`, of Hopper's by `ROW_BLOCKS`), or of sequences that decode (`FEW_ROWS`).
`tests/runtime/runner/test_cuda_specialisations.py` holds these steps to that, for every launch that an engine makes.

The steps' block tables are empty, so all they write goes to the null page, and the slots are void until a sequence
starts.
"""

from __future__ import annotations

from collections.abc import Iterator

from thranite.engine.plan import Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.sampling_params import TokenParams
from thranite_kernels.hopper_decode import FEW_ROWS
from thranite_kernels.hopper_gemm import ROW_BLOCKS
from thranite_kernels.target import FUSED_BOUNDS

PLAIN = TokenParams(max_tokens=1, seed=0, temperature=0.7)
TRUNCATED = TokenParams(max_tokens=1, seed=0, temperature=0.7, top_p=0.9, top_k=50, min_p=0.05, logprobs=0)
SHAPED = TokenParams(
    max_tokens=1, seed=0, repetition_penalty=1.1, logit_bias=((1, 1.0),), min_tokens=1, stop_token_ids=(1,), logprobs=5
)
EVERY = TokenParams(
    max_tokens=1, seed=0, temperature=0.7, top_p=0.9, top_k=50, min_p=0.05, repetition_penalty=1.1, logprobs=20
)
PROMPT_TOKENS = (1, 16, 1000)


def warm_up_steps(settings: EngineSettings) -> Iterator[StepPlan]:
    """Prompts of few tokens and of many, and decodes beside a prompt, under every kind of sampling."""
    most = _most(settings)
    counts = {min(count, most) for count in PROMPT_TOKENS}
    for params in (PLAIN, TRUNCATED, SHAPED, EVERY):
        for count in sorted(counts):
            yield _prompts(count, params, settings)
            if settings.max_num_seqs > 1 and min(_longest(settings), settings.max_num_batched_tokens) > 4:
                yield _beside_a_prompt(params, settings)
    if settings.max_num_seqs == 1:  # which never decodes beside a prompt
        yield StepPlan(step=0, decodes=[0])
    if settings.most_decodes > FEW_ROWS:
        slots = list(range(FEW_ROWS + 1))
        yield StepPlan(step=0, decodes=slots, starts=[SlotStart(slot, 0, PLAIN, [0], 1, 0) for slot in slots])
    for count in sorted({min(count, most) for count in (*FUSED_BOUNDS, *ROW_BLOCKS)} - counts):
        yield _prompts(count, SHAPED, settings)  # whose tokens are all scored: a small head multiplies as many rows


def full_step(settings: EngineSettings) -> StepPlan:
    """Prompts that fill the token budget, as most steps are while many prompts wait."""
    return _prompts(_most(settings), PLAIN, settings)


def _most(settings: EngineSettings) -> int:
    return min(settings.max_num_batched_tokens, settings.max_num_seqs * _longest(settings))


def _longest(settings: EngineSettings) -> int:
    return settings.max_model_len - 1


def _prompts(count: int, params: TokenParams, settings: EngineSettings) -> StepPlan:
    """`count` tokens in as few prompts as the model's length allows."""
    starts: list[SlotStart] = []
    prefills: list[Prefill] = []
    while count > 0:
        start, prefill = _prompt(len(starts), min(count, _longest(settings)), params, settings)
        starts.append(start)
        prefills.append(prefill)
        count -= len(prefill.token_ids)
    return StepPlan(step=0, starts=starts, prefills=prefills)


def _prompt(slot: int, count: int, params: TokenParams, settings: EngineSettings) -> tuple[SlotStart, Prefill]:
    tokens = [i % settings.vocab_size for i in range(count)]
    scores = 1 if params is SHAPED and count > 1 else None
    prefill = Prefill(slot, 0, tokens, (slot,), scores, tokens[1:] if scores else ())
    return SlotStart(slot, 0, params, tokens, count, 0), prefill


def _beside_a_prompt(params: TokenParams, settings: EngineSettings) -> StepPlan:
    start, prefill = _prompt(1, 3, params, settings)
    return StepPlan(step=0, decodes=[0], starts=[start], prefills=[prefill])
