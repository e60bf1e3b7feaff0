"""Sampling without a sort, without a host sync, greedy and random rows mixed.

    x = logits / temperature
    min-p keeps x ≥ max + log(min_p);  then top-k keeps x ≥ the k-th largest;  then top-p keeps the smallest set of
    largest values whose share of what is left reaches p.  Values equal to a threshold are all kept.
    token: a chunk of the vocabulary, then one of its ids, each by arg-max of value + Gumbel noise       (rng.py)

Logits are the model's, or what `shaping` made of them. Parameters live per slot on the device. A row whose slot is −1
is padding: it costs nothing and gives token 0. Rows with temperature below 1e−5 are greedy: no filter can change their
arg-max.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._sampler import draw_kernel, peak_kernel, threshold_kernel, weigh_kernel
from .launch import Launch, cdiv, next_power_of_2, require
from .rng import DRAW_CHUNK, FIRST_CHUNK, gumbel_reference, random_bits_reference
from .shaping import SlotTable
from .work import Work

THRESHOLD_BLOCK = 8192
"""Candidates searched in registers; more (nearly flat rows) are searched in memory, a pass a step."""
NARROW_BLOCK = 2048
"""The same where so many hold them, as they mostly do."""
GROUP = 32
"""Neighbours in the vocabulary whose maximum tells whether one of them can be a candidate."""


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Sampling parameters per slot."""

    temperature: torch.Tensor  # fp32 [max_slots]
    top_k: torch.Tensor  # int32 [max_slots], 0: off
    top_p: torch.Tensor  # fp32 [max_slots], 1: off
    min_p: torch.Tensor  # fp32 [max_slots], 0: off
    seed: torch.Tensor  # int64 [max_slots]
    sample_index: torch.Tensor  # int32 [max_slots]

    @classmethod
    def allocate(cls, max_slots: int, device: torch.device | str) -> SamplingState:
        """Everything off, temperature 1."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((max_slots,), value, dtype=dtype, device=device)

        return cls(
            temperature=full(1.0, torch.float32),
            top_k=full(0, torch.int32),
            top_p=full(1.0, torch.float32),
            min_p=full(0.0, torch.float32),
            seed=full(0, torch.int64),
            sample_index=full(0, torch.int32),
        )


@dataclass(frozen=True, slots=True)
class SamplerScratch:
    """Scratch of one batch size; contents do not outlive a call."""

    peaks: torch.Tensor  # fp32 [R, chunks * DRAW_CHUNK / GROUP]
    groups: torch.Tensor  # int32 [R, THRESHOLD_BLOCK / GROUP]
    candidates: torch.Tensor  # fp32 [R, THRESHOLD_BLOCK]
    threshold: torch.Tensor  # fp32 [R]
    weight: torch.Tensor  # fp32 [R, chunks]

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device | str) -> SamplerScratch:
        """For batches of up to `rows` rows."""
        chunks = cdiv(vocab, DRAW_CHUNK)

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(rows, *shape, dtype=torch.float32, device=device)

        def integers(*shape: int) -> torch.Tensor:
            return torch.empty(rows, *shape, dtype=torch.int32, device=device)

        return cls(
            peaks=floats(chunks * DRAW_CHUNK // GROUP),
            groups=integers(THRESHOLD_BLOCK // GROUP),
            candidates=floats(THRESHOLD_BLOCK),
            threshold=floats(),
            weight=floats(chunks),
        )


def sample(
    logits: torch.Tensor,
    state: SamplingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scratch: SamplerScratch,
    *,
    filters: bool = True,
    last_token: torch.Tensor | None = None,
    counts: SlotTable | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token a row: int32 [R].

    logits [R, V]; slots int32 [R]; positions int32 [R] of the tokens to sample. `filters=False` skips the thresholds
    when no row of the batch uses min-p, top-k or top-p. `last_token` int32 [max_slots] receives each row's token, and
    `counts` (of `shaping.ShapingState`) counts it.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device) if out is None else out
    for launch in sample_launches(
        logits, state, slots, positions, scratch, filters=filters, last_token=last_token, counts=counts, out=out
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
    filters: bool,
    last_token: torch.Tensor | None,
    counts: SlotTable | None,
    out: torch.Tensor,
) -> list[Launch]:
    """The two or four launches behind `sample`."""
    rows, vocab = logits.shape
    chunks = cdiv(vocab, DRAW_CHUNK)
    require(logits.stride(1) == 1, "sample: logits rows must be contiguous")
    require(scratch.weight.shape[1] == chunks and scratch.weight.shape[0] >= rows, "sample: scratch of another size")
    row = {
        "logits_ptr": logits,
        "stride_x": logits.stride(0),
        "slots_ptr": slots,
        "temperature_ptr": state.temperature,
        "threshold_ptr": scratch.threshold if filters else None,
        "weight_ptr": scratch.weight,
        "vocab": vocab,
        "chunks": chunks,
    }
    constants = {"BLOCK": DRAW_CHUNK, "FILTERS": filters}
    weights = Launch(weigh_kernel, (rows * chunks,), row, constants, num_warps=8)
    arguments = {
        **row,
        "seed_ptr": state.seed,
        "index_ptr": state.sample_index,
        "position_ptr": positions,
        "token_ptr": out,
        "last_token_ptr": last_token,
        "count_row_ptr": None if counts is None else counts.row,
        "count_ptr": None if counts is None else counts.table,
        "stride_count": 0 if counts is None else counts.table.stride(0),
    }
    drawing = {
        **constants,
        "CHUNKS": next_power_of_2(chunks),
        "COMMIT": last_token is not None,
        "COUNT": counts is not None,
    }
    draw = Launch(draw_kernel, (rows,), arguments, drawing, num_warps=8)
    return [*_thresholds(logits, slots, state, scratch), weights, draw] if filters else [weights, draw]


def _thresholds(
    logits: torch.Tensor, slots: torch.Tensor, state: SamplingState, scratch: SamplerScratch
) -> list[Launch]:
    """Maxima of groups; then one program a row finds the lowest logit that min-p, top-k and top-p keep."""
    rows, vocab = logits.shape
    chunks, groups = cdiv(vocab, DRAW_CHUNK), scratch.peaks.shape[1]
    row = {"logits_ptr": logits, "stride_x": logits.stride(0), "slots_ptr": slots}
    peaks = Launch(
        peak_kernel,
        (rows * chunks,),
        {**row, "peak_ptr": scratch.peaks, "vocab": vocab, "chunks": chunks},
        {"BLOCK": DRAW_CHUNK, "GROUP": GROUP},
        num_warps=8,
    )
    arguments = {
        **row,
        "temperature_ptr": state.temperature,
        "top_k_ptr": state.top_k,
        "top_p_ptr": state.top_p,
        "min_p_ptr": state.min_p,
        "peak_ptr": scratch.peaks,
        "group_ptr": scratch.groups,
        "scratch_ptr": scratch.candidates,
        "threshold_ptr": scratch.threshold,
        "vocab": vocab,
        "groups": groups,
    }
    constants = {
        "BLOCK": THRESHOLD_BLOCK,
        "NARROW": NARROW_BLOCK,
        "GROUP": GROUP,
        "GROUPS": next_power_of_2(groups),
    }
    return [peaks, Launch(threshold_kernel, (rows,), arguments, constants, num_warps=16)]


def scaled_reference(logits: torch.Tensor, state: SamplingState, slots: torch.Tensor) -> torch.Tensor:
    """fp32 [R, V] over the temperature; rows of padding are those of slot 0."""
    temperature = state.temperature[slots.clamp_min(0).long(), None]
    return torch.where(temperature < 1e-5, logits.float(), logits.float() / temperature)


def filter_reference(x: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Boolean [R, V]: what min-p, then top-k, then top-p keep of scaled logits `x`, computed with a sort in float64."""
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
) -> torch.Tensor:
    """The tokens `sample` gives, int64 [R]; writes nothing."""
    at = slots.clamp_min(0).long()
    x = scaled_reference(logits, state, slots)
    kept = filter_reference(x, state.top_k[at], state.top_p[at], state.min_p[at])
    greedy = state.temperature[at] < 1e-5
    chunks = cdiv(x.shape[1], DRAW_CHUNK)
    x = x.double().masked_fill(~kept, -torch.inf)
    x = torch.nn.functional.pad(x, (0, chunks * DRAW_CHUNK - x.shape[1]), value=-torch.inf).unflatten(1, (chunks, -1))
    weight = torch.where(greedy[:, None], x.amax(-1), x.logsumexp(-1))
    chosen = _best(weight, FIRST_CHUNK + torch.arange(chunks).expand_as(weight), state, at, positions, greedy)
    ids = chosen[:, None] * DRAW_CHUNK + torch.arange(DRAW_CHUNK, device=x.device)
    inside = x[torch.arange(len(x)), chosen]
    tokens = ids.gather(1, _best(inside, ids, state, at, positions, greedy)[:, None])[:, 0]
    return torch.where(slots < 0, 0, tokens)


def _best(
    values: torch.Tensor,
    counters: torch.Tensor,
    state: SamplingState,
    at: torch.Tensor,
    positions: torch.Tensor,
    greedy: torch.Tensor,
) -> torch.Tensor:
    """int64 [R]: arg-max of fp64 `values` [R, n] plus the noise of `counters` [R, n]; none for greedy rows."""
    keys = zip(state.seed[at].tolist(), state.sample_index[at].tolist(), positions.tolist(), strict=True)
    rows = zip(keys, counters.cpu(), strict=True)
    bits = [random_bits_reference([seed], [index], [position], row) for (seed, index, position), row in rows]
    noise = gumbel_reference(torch.cat(bits)).to(values.device)
    return (values + noise.masked_fill(greedy[:, None], 0.0)).argmax(-1)


def sample_work(rows: int, vocab: int, itemsize: int = 2) -> Work:
    """The logits read once; about 4 operations an entry for the weights, and 40 an entry of one chunk for its noise."""
    return Work(bytes=rows * vocab * itemsize, flops=rows * (4 * vocab + 40 * DRAW_CHUNK))
