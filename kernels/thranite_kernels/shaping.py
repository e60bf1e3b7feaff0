"""What a request's parameters make of a row's logits before temperature and truncation.

    x = logits + bias → −inf where a bitmask forbids → −inf for stop tokens before the minimal length
    x of tokens in prompt or output → x / repetition if x > 0, else x · repetition
    x → x − times generated · frequency − [generated] · presence

Stop tokens stay where nothing else is left. State lives per slot on the device; tables of vocabulary size have a row
for the slots that need one. Rows whose slot is −1 are left out. Rounded operation by operation, so the result is
torch's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from ._shaping import alive_kernel, shape_kernel
from .launch import Launch, cdiv, next_power_of_2, require
from .work import Work

CHUNK = 4096


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Rows that only some slots have."""

    row: torch.Tensor  # int32 [max_slots], the slot's row, -1: none
    table: torch.Tensor  # [*, width], contiguous


@dataclass(frozen=True, slots=True)
class ShapingState:
    """Per slot."""

    bias: SlotTable  # fp32, width V
    counts: SlotTable  # int32, width V: 2 · (times generated) + (1 if in the prompt); a row where a penalty is in use
    stops: SlotTable  # int32, width ceil(V / 32): bit v % 32 of word v / 32 bans v before `min_position`
    min_position: torch.Tensor  # int32 [max_slots]
    repetition: torch.Tensor  # fp32 [max_slots], 1: off
    presence: torch.Tensor  # fp32 [max_slots], 0: off
    frequency: torch.Tensor  # fp32 [max_slots], 0: off

    @classmethod
    def allocate(cls, max_slots: int, vocab: int, device: torch.device | str, rows: int = 0) -> ShapingState:
        """Everything off; tables of `rows` rows."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((max_slots,), value, dtype=dtype, device=device)

        def table(width: int, dtype: torch.dtype) -> SlotTable:
            return SlotTable(full(-1, torch.int32), torch.zeros(rows, width, dtype=dtype, device=device))

        return cls(
            bias=table(vocab, torch.float32),
            counts=table(vocab, torch.int32),
            stops=table(cdiv(vocab, 32), torch.int32),
            min_position=full(0, torch.int32),
            repetition=full(1.0, torch.float32),
            presence=full(0.0, torch.float32),
            frequency=full(0.0, torch.float32),
        )


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Bitmasks of a step: `words` int32 [*, ceil(V / 32)] of allowed tokens, `index` int32 [R] (−1: unconstrained)."""

    words: torch.Tensor
    index: torch.Tensor

    @classmethod
    def none(cls, rows: int, vocab: int, device: torch.device | str) -> RowMasks:
        words = torch.zeros(1, cdiv(vocab, 32), dtype=torch.int32, device=device)
        return cls(words, torch.full((rows,), -1, dtype=torch.int32, device=device))


def shape(
    logits: torch.Tensor,
    state: ShapingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    masks: RowMasks,
    *,
    bans: bool = True,
    alive: torch.Tensor | None = None,
) -> torch.Tensor:
    """logits [R, V], slots and positions int32 [R] → fp32 [R, V].

    `bans=False` spares a launch where no row's position lies below its slot's minimum. `alive`, as `alive_scratch`
    makes it, spares allocating it.
    """
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    for launch in shape_launches(logits, state, slots, positions, masks, bans=bans, out=out, alive=alive):
        launch.run()
    return out


def alive_scratch(rows: int, vocab: int, device: torch.device | str) -> torch.Tensor:
    """int32 [rows, chunks], for calls of up to so many rows; contents do not outlive a call."""
    return torch.empty(rows, cdiv(vocab, CHUNK), dtype=torch.int32, device=device)


def shape_launches(
    logits: torch.Tensor,
    state: ShapingState,
    slots: torch.Tensor,
    positions: torch.Tensor,
    masks: RowMasks,
    *,
    bans: bool,
    out: torch.Tensor,
    alive: torch.Tensor | None = None,
) -> list[Launch]:
    """The one or two launches behind `shape`."""
    rows, vocab = logits.shape
    require(logits.stride(1) == 1, "shape: logits rows must be contiguous")
    require(out.is_contiguous() and out.dtype == torch.float32, "shape: the result is contiguous fp32")
    chunks = cdiv(vocab, CHUNK)
    alive = alive_scratch(rows, vocab, logits.device) if alive is None else alive
    require(alive.shape[0] >= rows and alive.shape[1] == chunks, "shape: scratch of another size")
    common: dict[str, Any] = {
        "logits_ptr": logits,
        "stride_x": logits.stride(0),
        "slots_ptr": slots,
        "position_ptr": positions,
        "bias_row_ptr": state.bias.row,
        "bias_ptr": state.bias.table,
        "stride_bias": state.bias.table.stride(0),
        "stop_row_ptr": state.stops.row,
        "stop_ptr": state.stops.table,
        "stride_stop": state.stops.table.stride(0),
        "min_position_ptr": state.min_position,
        "mask_index_ptr": masks.index,
        "mask_ptr": masks.words,
        "stride_mask": masks.words.stride(0),
        "alive_ptr": alive,
        "vocab": vocab,
        "chunks": chunks,
    }
    penalties = {
        "count_row_ptr": state.counts.row,
        "count_ptr": state.counts.table,
        "stride_count": state.counts.table.stride(0),
        "repetition_ptr": state.repetition,
        "presence_ptr": state.presence,
        "frequency_ptr": state.frequency,
    }
    grid = (rows * chunks,)
    first = Launch(alive_kernel, grid, common, {"BLOCK": CHUNK}, num_warps=8)
    second = Launch(
        shape_kernel,
        grid,
        {**common, **penalties, "out_ptr": out, "stride_out": out.stride(0)},
        {"CHUNKS": next_power_of_2(chunks), "BLOCK": CHUNK},
        num_warps=8,
        options={"enable_fp_fusion": False},
    )
    return [first, second] if bans else [second]


def unpack_bits(words: torch.Tensor, vocab: int) -> torch.Tensor:
    """Packed int32 words [..., ceil(V/32)] as booleans [..., V]; bit v % 32 of word v / 32."""
    bits = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(-2)[..., :vocab].bool()


def shape_reference(
    logits: torch.Tensor, state: ShapingState, slots: torch.Tensor, positions: torch.Tensor, masks: RowMasks
) -> torch.Tensor:
    """The same, row by row; rows of padding are zero."""
    out = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    vocab = logits.shape[1]
    for r, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        at = {field.name: _row(getattr(state, field.name), slot) for field in fields(state)}
        x = logits[r].float()
        if at["bias"] is not None:
            x = x + at["bias"]
        if int(masks.index[r]) >= 0:
            x = x.masked_fill(~unpack_bits(masks.words[int(masks.index[r])], vocab), -torch.inf)
        if at["stops"] is not None and int(positions[r]) < int(at["min_position"]):
            short = x.masked_fill(unpack_bits(at["stops"], vocab), -torch.inf)
            x = x if bool((short == -torch.inf).all()) else short
        if at["counts"] is not None:
            scaled = torch.where(x > 0, x / at["repetition"], x * at["repetition"])
            generated = at["counts"] >> 1
            x = torch.where(at["counts"] > 0, scaled, x) - generated * at["frequency"]
            x = x - (generated > 0) * at["presence"]
        out[r] = x
    return out


def _row(values: SlotTable | torch.Tensor, slot: int) -> Any:
    """A slot's value, or its row of a table, None where it has none."""
    if isinstance(values, torch.Tensor):
        return values[slot]
    row = int(values.row[slot])
    return values.table[row] if row >= 0 else None


def shape_work(rows: int, vocab: int, itemsize: int = 2) -> Work:
    """Logits and counts read, the copy written."""
    return Work(bytes=rows * vocab * (itemsize + 8), flops=10 * rows * vocab)
