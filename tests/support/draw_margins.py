"""How close a draw was to another token, so that two devices are held to the same tokens except at a near tie.

`watch` makes an engine's sampler keep the raw logits of every draw; and the CPU's also the draw's margin: the largest
change of the row's scores (logits over temperature, or shares of the nucleus) that surely leaves the token as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thranite.engine.engine import Engine
from thranite.runner.cuda_sampler import CudaSampler
from thranite.runner.sampler import Sampler
from thranite.runner.sampling_state import StepRows
from thranite_kernels.rng import DRAW_CHUNK, gumbel_reference

Key = tuple[int, int, int]  # seed, sample index, position: what a draw is a function of, beside its logits


@dataclass
class Draw:
    """One row of one step. `margin`: of CPU draws."""

    logits: Tensor  # fp32 [vocab], as the model gave them
    token: int
    margin: float = math.nan


class Watch:
    """The draws of an engine by key; a sequence that is computed anew draws no key twice."""

    def __init__(self) -> None:
        self.draws: dict[Key, Draw] = {}
        self._owner: dict[int, tuple[int, int]] = {}

    def start(self, starts: Sequence[Any]) -> None:
        for start in starts:
            self._owner[start.slot] = (start.params.seed, start.sample_index)

    def keep(self, slots: Sequence[int], positions: Sequence[int], logits: Tensor, tokens: Tensor) -> None:
        for slot, position, row, token in zip(slots, positions, logits.float().cpu(), tokens.tolist(), strict=True):
            self.draws[*self._owner[int(slot)], int(position)] = Draw(row.clone(), int(token))

    def margin(self, slot: int, position: int, margin: float) -> None:
        self.draws[*self._owner[slot], position].margin = margin


def watch(engine: Engine) -> Watch:
    """From now on; the engine's steps then wait for the device."""
    kept, sampler = Watch(), engine._executor._sampler  # type: ignore[attr-defined]
    begin = sampler.start

    def start(starts: Sequence[Any]) -> None:
        kept.start(starts)
        begin(starts)

    sampler.start = start
    if isinstance(sampler, CudaSampler):
        _watch_gpu(sampler, kept)
    else:
        _watch_cpu(sampler, kept)
    return kept


def _watch_gpu(sampler: CudaSampler, kept: Watch) -> None:
    draw = sampler.draw

    def keeping(logits: Tensor, rows: Any, *rest: Any) -> Any:
        drawn = draw(logits, rows, *rest)
        kept.keep(rows[0], rows[1][rows[0]], logits, drawn.tokens)
        return drawn

    sampler.draw = keeping  # type: ignore[method-assign, assignment]


def _watch_cpu(sampler: Sampler, kept: Watch) -> None:
    sample, draw = sampler.sample, sampler._draw
    margins: list[float] = []

    def measuring(logits: Tensor, rows: StepRows) -> Tensor:
        params = sampler._states.params(rows, torch.float64)
        shaped = logits.double()
        sampler._penalties.apply_(shaped, rows, params)
        for row, slot, position in zip(shaped, rows.slots, rows.positions, strict=True):
            margins.append(margin_of(row, sampler, int(slot), int(position), kept))
        return draw(logits, rows)

    def keeping(logits: Tensor, slots: Sequence[int], positions: Sequence[int], masks: Any) -> Any:
        raw = logits.clone()
        margins.clear()
        drawn = sample(logits, slots, positions, masks)
        kept.keep(slots, positions, raw, drawn.tokens)
        for slot, position, margin in zip(slots, positions, margins, strict=True):
            kept.margin(int(slot), int(position), margin)
        return drawn

    sampler._draw = measuring  # type: ignore[method-assign]
    sampler.sample = keeping  # type: ignore[method-assign]


def margin_of(shaped: Tensor, sampler: Sampler, slot: int, position: int, kept: Watch) -> float:
    """Of one row: float64 logits after biases, masks and penalties."""
    temperature, top_p, top_k, min_p = sampler._states._params[:4, slot].tolist()
    seed, sample_index = kept._owner[slot]
    if temperature < 1e-5:
        best = shaped.topk(2).values
        return float(best[0] - best[1])
    x = shaped / temperature
    assert len(x) <= DRAW_CHUNK  # the draw is then of one chunk, and its second level decides
    return truncated_margin(x, noise(seed, sample_index, position, len(x)), top_p, int(top_k), min_p)


def noise(seed: int, sample_index: int, position: int, count: int) -> Tensor:
    """float64 [count], by the generator's definition."""
    from thranite_kernels.rng import random_bits_reference

    return gumbel_reference(random_bits_reference([seed], [sample_index], [position], torch.arange(count)))[0]


def truncated_margin(x: Tensor, gumbel: Tensor, top_p: float, top_k: int, min_p: float) -> float:
    """How far the draw is from another token: the race's lead, and the distance to the cut of every token whose being
    kept or not decides the race (the winner, and those ruled out that would have won)."""
    room = torch.full_like(x, math.inf)  # of each token: positive inside, negative outside every cut
    kept = x > -math.inf

    def cut(distance: Tensor) -> None:
        nonlocal kept
        distance = distance.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # both sides of it banned
        room.copy_(torch.minimum(room, distance))
        kept = kept & (distance >= 0)

    if min_p > 0.0:
        cut(x - (x.max() + math.log(min_p)))
    if 0 < top_k < len(x):
        best = x.topk(top_k + 1).values
        cut(torch.where(x >= best[-2], x - best[-1], x - best[-2]))
    if top_p < 1.0:
        share = torch.where(kept, (x - x.max()).exp(), 0.0)
        share /= share.sum()
        before = torch.stack([share[x > value].sum() for value in x])
        cut(torch.where(before < top_p, (top_p - before).clamp(min=1e-300), top_p - before - 1e-300))
    scores = torch.where(kept, x + gumbel, -math.inf)
    lead = scores.topk(2).values
    winner = int(scores.argmax())
    rivals = ~kept & (x + gumbel > scores[winner])
    outside = float(room[rivals].abs().min()) if bool(rivals.any()) else math.inf
    return min(float(lead[0] - lead[1]), float(room[winner]), outside)


@dataclass(frozen=True)
class Difference:
    """Where a sequence's tokens part: the first one that differs. `margin` is the CPU's; `logits`: the largest
    difference of the row's raw logits; `before`: of the rows before it."""

    sequence: tuple[str, int]
    number: int
    tokens: tuple[int, int]
    margin: float
    logits: float
    before: float

    @property
    def excused(self) -> bool:
        """A near tie between rows that are equal up to fp32's rounding."""
        return self.margin < TIE and self.logits < TIE


TIE = 1e-4


def differences(
    want: dict[tuple[str, int], list[int]],
    got: dict[tuple[str, int], list[int]],
    prompts: dict[str, tuple[int, int]],
    watches: tuple[Watch, Watch],
) -> list[Difference]:
    """The sequences that differ. `prompts`: seed and length of each request's prompt; `watches`: of both engines."""
    found = []
    for name, tokens in want.items():
        if tokens == got[name]:
            continue
        pairs = enumerate(zip(tokens, got[name], strict=False))
        at = next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(got[name])) - 1)
        seed, length = prompts[name[0]]
        rows = [[w.draws[seed, name[1], length + i] for w in watches] for i in range(at + 1)]
        apart = [float((one.logits - other.logits).abs().max()) for one, other in rows]
        one, other = rows[-1]
        found.append(
            Difference(name, at, (one.token, other.token), one.margin, apart[-1], max(apart[:-1], default=0.0))
        )
    return found
