"""Log-probabilities of chosen tokens, their ranks, and the most likely alternatives, from raw logits.

    log p(v) = x(v) − log Σ exp x        rank = 1 + |{v : x(v) > x(chosen), or equal and v < chosen}|

Equal values are ordered by token id. Serves sampled tokens and prompt tokens alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._logprobs import logprob_chunk_kernel, logprob_row_kernel
from .launch import Launch, cdiv, next_power_of_2, require
from .work import Work

CHUNK = 4096
MAX_TOP = 32
"""Most alternatives a row may ask for (the API allows 20)."""


class Logprobs(NamedTuple):
    """One entry a row; entries of rows that want nothing, and alternatives past a row's wish, are undefined."""

    chosen: torch.Tensor  # fp32 [R]
    rank: torch.Tensor  # int32 [R]
    top_values: torch.Tensor  # fp32 [R, TOP], TOP the power of two at or above `top`
    top_ids: torch.Tensor  # int32 [R, TOP]


class LogprobsScratch(NamedTuple):
    """What a call leaves to its second launch, an entry a row and chunk; contents do not outlive a call."""

    peak: torch.Tensor  # fp32 [R, chunks]
    total: torch.Tensor  # fp32 [R, chunks]
    above: torch.Tensor  # int32 [R, chunks]
    values: torch.Tensor  # fp32 [R, chunks, TOP]
    ids: torch.Tensor  # int32 [R, chunks, TOP]

    @classmethod
    def allocate(cls, rows: int, vocab: int, width: int, device: torch.device | str) -> LogprobsScratch:
        """For so many rows and, a power of two, alternatives."""
        chunks = cdiv(vocab, CHUNK)

        def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(rows, chunks, *shape, dtype=dtype, device=device)

        return cls(
            empty(torch.float32),
            empty(torch.float32),
            empty(torch.int32),
            empty(torch.float32, width),
            empty(torch.int32, width),
        )


def logprobs(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    top: int,
    *,
    wanted: torch.Tensor | None = None,
    out: Logprobs | None = None,
    scratch: LogprobsScratch | None = None,
) -> Logprobs:
    """logits [R, V], tokens int32 [R]; `wanted` int32 [R] says how many alternatives (−1: skip the row).

    `scratch`, for as many rows, chunks and alternatives, spares allocating it.
    """
    rows = logits.shape[0]
    width = next_power_of_2(max(top, 1))
    device = logits.device
    out = out or Logprobs(
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, width, dtype=torch.float32, device=device),
        torch.empty(rows, width, dtype=torch.int32, device=device),
    )
    for launch in logprobs_launches(logits, tokens, top, wanted=wanted, out=out, scratch=scratch):
        launch.run()
    return out


def logprobs_launches(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    top: int,
    *,
    wanted: torch.Tensor | None,
    out: Logprobs,
    scratch: LogprobsScratch | None = None,
) -> list[Launch]:
    """The two launches behind `logprobs`."""
    rows, vocab = logits.shape
    require(0 <= top <= MAX_TOP, f"logprobs: 0 to {MAX_TOP} alternatives")
    require(logits.stride(1) == 1, "logprobs: logits rows must be contiguous")
    chunks, width = cdiv(vocab, CHUNK), out.top_values.shape[1]
    if scratch is None:
        scratch = LogprobsScratch.allocate(rows, vocab, width, logits.device)
    require(scratch.values.shape == (rows, chunks, width), "logprobs: scratch of another size")
    shared = {
        "logits_ptr": logits,
        "stride_x": logits.stride(0),
        "token_ptr": tokens,
        "wanted_ptr": wanted,
        "max_ptr": scratch.peak,
        "sum_ptr": scratch.total,
        "above_ptr": scratch.above,
        "value_ptr": scratch.values,
        "id_ptr": scratch.ids,
        "chunks": chunks,
        "top": top,
    }
    select = wanted is not None
    first = Launch(
        logprob_chunk_kernel,
        (rows * chunks,),
        {**shared, "vocab": vocab},
        {"TOP": width, "BLOCK": CHUNK, "SELECT": select},
    )
    second = Launch(
        logprob_row_kernel,
        (rows,),
        {
            **shared,
            "chosen_ptr": out.chosen,
            "rank_ptr": out.rank,
            "top_value_ptr": out.top_values,
            "top_id_ptr": out.top_ids,
        },
        {"TOP": width, "CHUNKS": next_power_of_2(chunks), "SELECT": select},
        num_warps=2,
    )
    return [first, second]


def logprobs_reference(logits: torch.Tensor, tokens: torch.Tensor, top: int) -> Logprobs:
    """The same for every row in float64 with a stable sort."""
    x = logits.double()
    chosen = x.gather(1, tokens.long()[:, None])
    logp = x.log_softmax(-1)
    ids = torch.arange(x.shape[1], device=x.device)
    order = x.argsort(dim=-1, descending=True, stable=True)[:, :top]
    return Logprobs(
        logp.gather(1, tokens.long()[:, None])[:, 0],
        1 + ((x > chosen) | ((x == chosen) & (ids < tokens.long()[:, None]))).sum(-1),
        logp.gather(1, order),
        order,
    )


def logprobs_work(rows: int, vocab: int, itemsize: int = 2) -> Work:
    """The logits read once."""
    return Work(bytes=rows * vocab * itemsize, flops=4 * rows * vocab)
