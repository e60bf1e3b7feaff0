"""Sampling without a sort, without a host sync, greedy and random rows mixed.

    x = logits → repetition, frequency, presence penalties → bitmask → / temperature
    min-p keeps x ≥ max + log(min_p);  then top-k keeps x ≥ the k-th largest;  then top-p keeps the smallest set of
    largest values whose share of what is left reaches p.  Values equal to a threshold are all kept.
    token = arg-max of x + Gumbel(seed, sample index, position, token id) over what is kept        (rng.py)

Parameters live per slot on the device. A row whose slot is −1 is padding: it costs nothing and gives token 0. Rows with
temperature below 1e−5 are greedy: no filter can change their arg-max.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._sampler import choose_kernel, chunk_kernel, threshold_kernel
from .launch import Launch, cdiv, next_power_of_2, require
from .rng import gumbel_reference, random_bits_reference
from .work import Work

THRESHOLD_BLOCK = 8192
"""Candidates searched in registers; more (nearly flat rows) are searched in memory, a pass a step."""
CHUNK = 4096
"""Vocabulary entries of one noise program."""


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Sampling parameters per slot; `counts` and `prompt_bits` only where penalties are in use."""

    temperature: torch.Tensor  # fp32 [max_slots]
    top_k: torch.Tensor  # int32 [max_slots], 0: off
    top_p: torch.Tensor  # fp32 [max_slots], 1: off
    min_p: torch.Tensor  # fp32 [max_slots], 0: off
    repetition: torch.Tensor  # fp32 [max_slots], 1: off
    presence: torch.Tensor  # fp32 [max_slots], 0: off
    frequency: torch.Tensor  # fp32 [max_slots], 0: off
    seed: torch.Tensor  # int64 [max_slots]
    sample_index: torch.Tensor  # int32 [max_slots]
    counts: torch.Tensor | None = None  # int16 or int32 [max_slots, V], times a token was generated
    prompt_bits: torch.Tensor | None = None  # int32 [max_slots, ceil(V / 32)], bit v % 32 of word v / 32: in the prompt

    @classmethod
    def allocate(
        cls, max_slots: int, device: torch.device | str, *, vocab: int | None = None, counts: torch.dtype = torch.int16
    ) -> SamplingState:
        """Everything off, temperature 1; room for penalties if `vocab` is given."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((max_slots,), value, dtype=dtype, device=device)

        words = cdiv(vocab or 0, 32)
        return cls(
            temperature=full(1.0, torch.float32),
            top_k=full(0, torch.int32),
            top_p=full(1.0, torch.float32),
            min_p=full(0.0, torch.float32),
            repetition=full(1.0, torch.float32),
            presence=full(0.0, torch.float32),
            frequency=full(0.0, torch.float32),
            seed=full(0, torch.int64),
            sample_index=full(0, torch.int32),
            counts=None if vocab is None else torch.zeros(max_slots, vocab, dtype=counts, device=device),
            prompt_bits=None if vocab is None else torch.zeros(max_slots, words, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class SamplerScratch:
    """Scratch of one batch size; contents do not outlive a call."""

    candidates: torch.Tensor  # fp32 [R, THRESHOLD_BLOCK]
    threshold: torch.Tensor  # fp32 [R]
    value: torch.Tensor  # fp32 [R, chunks]
    token: torch.Tensor  # int32 [R, chunks]

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device | str) -> SamplerScratch:
        """For batches of up to `rows` rows."""
        chunks = cdiv(vocab, CHUNK)
        return cls(
            torch.empty(rows, THRESHOLD_BLOCK, dtype=torch.float32, device=device),
            torch.empty(rows, dtype=torch.float32, device=device),
            torch.empty(rows, chunks, dtype=torch.float32, device=device),
            torch.empty(rows, chunks, dtype=torch.int32, device=device),
        )


def sample(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scratch: SamplerScratch,
    *,
    bitmask: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
    filters: bool = True,
    last_token: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token a row: int32 [R].

    logits [R, V]; slots int32 [R]; positions int32 [R] of the tokens to sample; bitmask int32 [*, ceil(V/32)] with
    mask_index int32 [R] (−1: unconstrained). `filters=False` skips the threshold kernel when no row of the batch uses
    min-p, top-k or top-p. `last_token` int32 [max_slots] receives each row's token, `state.counts` is updated.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device) if out is None else out
    for launch in sample_launches(
        logits,
        state,
        slots,
        positions,
        scratch,
        bitmask=bitmask,
        mask_index=mask_index,
        filters=filters,
        last_token=last_token,
        out=out,
    ):
        launch.run()
    return out


def sample_launches(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scratch: SamplerScratch,
    *,
    bitmask: torch.Tensor | None,
    mask_index: torch.Tensor | None,
    filters: bool,
    last_token: torch.Tensor | None,
    out: torch.Tensor,
) -> list[Launch]:
    """The two or three launches behind `sample`."""
    rows, vocab = logits.shape
    chunks = cdiv(vocab, CHUNK)
    require(logits.stride(1) == 1, "sample: logits rows must be contiguous")
    require(scratch.value.shape[1] == chunks and scratch.value.shape[0] >= rows, "sample: scratch of another size")
    require((bitmask is None) == (mask_index is None), "sample: bitmask and mask_index go together")
    require((state.counts is None) == (state.prompt_bits is None), "sample: counts and prompt_bits go together")
    common = _shaping(logits, state, slots, bitmask, mask_index)
    flags = {"PENALTIES": state.counts is not None, "BITMASK": bitmask is not None}
    noise = Launch(
        chunk_kernel,
        (rows * chunks,),
        {
            **common,
            "seed_ptr": state.seed,
            "index_ptr": state.sample_index,
            "position_ptr": positions,
            "threshold_ptr": scratch.threshold if filters else None,
            "value_ptr": scratch.value,
            "token_ptr": scratch.token,
            "chunks": chunks,
        },
        {"BLOCK": CHUNK, "FILTERS": filters, **flags},
        num_warps=8,
    )
    choice = _choice(rows, chunks, state, slots, scratch, last_token, out)
    return [_thresholds(rows, common, state, scratch, flags), noise, choice] if filters else [noise, choice]


def _shaping(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    bitmask: torch.Tensor | None,
    mask_index: torch.Tensor | None,
) -> dict[str, Any]:
    """What both passes over the logits read."""
    return {
        "logits_ptr": logits,
        "stride_x": logits.stride(0),
        "slots_ptr": slots,
        "temperature_ptr": state.temperature,
        "repetition_ptr": state.repetition,
        "presence_ptr": state.presence,
        "frequency_ptr": state.frequency,
        "vocab": logits.shape[1],
        "count_ptr": state.counts,
        "stride_count": 0 if state.counts is None else state.counts.stride(0),
        "prompt_ptr": state.prompt_bits,
        "stride_prompt": 0 if state.prompt_bits is None else state.prompt_bits.stride(0),
        "mask_ptr": bitmask,
        "stride_mask": 0 if bitmask is None else bitmask.stride(0),
        "mask_index_ptr": mask_index,
    }


def _thresholds(
    rows: int, common: dict[str, Any], state: SamplingState, scratch: SamplerScratch, flags: dict[str, bool]
) -> Launch:
    """One program a row finds the lowest logit that min-p, top-k and top-p keep."""
    arguments = {
        **common,
        "top_k_ptr": state.top_k,
        "top_p_ptr": state.top_p,
        "min_p_ptr": state.min_p,
        "scratch_ptr": scratch.candidates,
        "threshold_ptr": scratch.threshold,
    }
    return Launch(threshold_kernel, (rows,), arguments, {"BLOCK": THRESHOLD_BLOCK, **flags}, num_warps=16)


def _choice(
    rows: int,
    chunks: int,
    state: SamplingState,
    slots: torch.Tensor,
    scratch: SamplerScratch,
    last_token: torch.Tensor | None,
    out: torch.Tensor,
) -> Launch:
    """One program a row picks the best of its chunks' winners."""
    arguments = {
        "slots_ptr": slots,
        "value_ptr": scratch.value,
        "candidate_ptr": scratch.token,
        "token_ptr": out,
        "last_token_ptr": last_token,
        "count_ptr": state.counts,
        "stride_count": 0 if state.counts is None else state.counts.stride(0),
        "chunks": chunks,
    }
    constants = {
        "CHUNKS": next_power_of_2(chunks),
        "COMMIT": last_token is not None,
        "PENALTIES": state.counts is not None,
    }
    return Launch(choose_kernel, (rows,), arguments, constants, num_warps=1)


def unpack_bits(words: torch.Tensor, vocab: int) -> torch.Tensor:
    """Packed int32 words [..., ceil(V/32)] as booleans [..., V]; bit v % 32 of word v / 32."""
    bits = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(-2)[..., :vocab].bool()


def shaped_logits_reference(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    bitmask: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp32 [R, V] after penalties, bitmask and temperature; rows of padding are those of slot 0."""
    at = slots.clamp_min(0).long()
    x = logits.float()
    vocab = x.shape[1]
    if state.counts is not None and state.prompt_bits is not None:
        count = state.counts[at].float()
        seen = (count > 0) | unpack_bits(state.prompt_bits[at], vocab)
        repetition = state.repetition[at, None]
        x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
        x = x - state.frequency[at, None] * count - state.presence[at, None] * (count > 0)
    if bitmask is not None and mask_index is not None:
        allowed = unpack_bits(bitmask[mask_index.clamp_min(0).long()], vocab) | (mask_index < 0)[:, None]
        x = x.masked_fill(~allowed, -torch.inf)
    temperature = state.temperature[at, None]
    return torch.where(temperature < 1e-5, x, x / temperature)


def filter_reference(x: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Boolean [R, V]: what min-p, then top-k, then top-p keep of shaped logits `x`, computed with a sort in float64."""
    kept = torch.zeros_like(x, dtype=torch.bool)
    for r in range(x.shape[0]):
        row = x[r].double()
        keep = row > -torch.inf
        if min_p[r] > 0:
            keep &= row >= row.max() + torch.log(min_p[r].double())
        if 0 < top_k[r] < row.numel() and int(keep.sum()) > int(top_k[r]):
            keep &= row >= row[keep].sort(descending=True).values[int(top_k[r]) - 1]
        if top_p[r] < 1:
            values, order = row[keep].softmax(0).sort(descending=True)
            needed = int((values.cumsum(0) < float(top_p[r])).sum())
            edge = row[keep][order[min(needed, values.numel() - 1)]]
            keep &= row >= edge
        kept[r] = keep
    return kept


def sample_reference(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    bitmask: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """The tokens `sample` gives, int64 [R]; writes nothing."""
    at = slots.clamp_min(0).long()
    x = shaped_logits_reference(logits, state, slots, bitmask, mask_index)
    kept = filter_reference(x, state.top_k[at], state.top_p[at], state.min_p[at])
    counters = torch.arange(x.shape[1])
    bits = random_bits_reference(state.seed[at].tolist(), state.sample_index[at].tolist(), positions.tolist(), counters)
    noisy = x.double().masked_fill(~kept, -torch.inf) + gumbel_reference(bits).to(x.device)
    tokens = torch.where(state.temperature[at] < 1e-5, x.argmax(-1), noisy.argmax(-1))
    return torch.where(slots < 0, 0, tokens)


def sample_work(rows: int, vocab: int, itemsize: int = 2) -> Work:
    """The logits read once; about 40 integer and float operations an entry for the noise."""
    return Work(bytes=rows * vocab * itemsize, flops=40 * rows * vocab)
