"""min_p, top_k and top_p as one threshold a row.

Each keeps the tokens whose logit reaches a threshold, so equal logits stand or fall together and no result depends on
how a sort breaks ties or on the batch: top_k keeps every token that ties with the k-th; top_p keeps a token if the
strictly likelier ones have less than p of what min_p and top_k left. The logits are not divided by the temperature:
thresholds are found in their own scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from thranite.runner.sampling_state import Feature, Ints, RowParams, RowSet, StepRows

# A row whose k is at most this finds its threshold among its k best logits; others sort the row. Decided by the row
# alone: were it decided by the batch, sums would round differently with the company.
SMALL_K = 128
# On the CPU, rows without a small k try this many best logits before a sort of the whole row (30 times dearer).
CPU_PREFIX = 512


@dataclass(frozen=True, slots=True)
class _Limits:
    """What rows ask of truncation, [n, 1] each."""

    best: Tensor  # the row's greatest logit
    floor: Tensor  # min_p as a threshold; -inf where off
    top_k: Tensor
    top_p: Tensor | None  # float64, inf where off; None: off in all rows
    temperature: Tensor

    def take(self, index: Tensor) -> _Limits:
        top_p = None if self.top_p is None else self.top_p[index]
        return _Limits(self.best[index], self.floor[index], self.top_k[index], top_p, self.temperature[index])

    def weights(self, values: Tensor, base: Tensor) -> Tensor:
        """float64 probabilities relative to the best token's, 0 below `base`."""
        relative = ((values - self.best) / self.temperature).double().exp()
        return relative.masked_fill_(values < base, 0.0)


def truncate_(logits: Tensor, rows: StepRows, params: RowParams, top_k: Ints) -> None:
    """Set to -inf what min_p, top_k and top_p rule out. `top_k`: k of each row on the host, 0 where off."""
    if not rows.used & (Feature.MIN_P | Feature.TOP_K | Feature.TOP_P):
        return
    ranked = rows.having(Feature.TOP_K | Feature.TOP_P)
    small = rows.having(Feature.TOP_K) & (top_k <= SMALL_K)
    for chosen in (rows.having(Feature.MIN_P) & ~ranked, small, ranked & ~small):
        if chosen.any():
            group = rows.select(chosen)
            part = group.take(logits)
            limits = _limits(part, group, rows, params)
            threshold = limits.floor
            if small[group.host[0]]:
                threshold = _threshold_of_small_k(part, limits, min(int(top_k[group.host].max()), part.shape[1]))
            elif ranked[group.host[0]]:
                threshold = _threshold(part, limits)
            part.masked_fill_(part < threshold, -math.inf)
            group.put_(logits, part)


def _limits(part: Tensor, group: RowSet, rows: StepRows, params: RowParams) -> _Limits:
    best = part.amax(-1, keepdim=True)
    temperature = group.take(params.temperature)[:, None]
    floor = best + temperature * group.take(params.min_p)[:, None].log().to(part.dtype)
    top_p = None
    if rows.having(Feature.TOP_P)[group.host].any():
        asked = group.take(params.top_p)[:, None]
        top_p = torch.where(asked < 1.0, asked, math.inf)
    return _Limits(best, floor, group.take(params.top_k)[:, None], top_p, temperature)


def _threshold_of_small_k(part: Tensor, limits: _Limits, prefix: int) -> Tensor:
    """[n, 1]. Every row's k is at most `prefix`."""
    values = part.topk(prefix).values
    base = torch.maximum(values.gather(1, limits.top_k - 1), limits.floor)
    if limits.top_p is None:
        return base
    # Kept tokens outside the prefix can only tie with the k-th, which then is `base`.
    outside = (part >= base).sum(-1, keepdim=True) - (values >= base).sum(-1, keepdim=True)
    inside = limits.weights(values, base).cumsum(-1)[:, -1:]
    return _nucleus(values, limits, base, inside + outside * limits.weights(base, base))[0]


def _threshold(part: Tensor, limits: _Limits) -> Tensor:
    """[n, 1], for any k. On the CPU a prefix is tried first; on a GPU looking at its outcome would be a wait."""
    width = part.shape[1]
    if part.is_cuda or width <= CPU_PREFIX:
        return _threshold_in(part.sort(descending=True).values, part, limits)[0]
    threshold, kept = _threshold_in(part.topk(CPU_PREFIX).values, part, limits)
    reached = (kept < CPU_PREFIX) & ((limits.top_k <= CPU_PREFIX) | (limits.top_k == width))
    left = torch.nonzero(~reached[:, 0])[:, 0]
    if len(left):
        rest = part[left]
        threshold[left] = _threshold_in(rest.sort(descending=True).values, rest, limits.take(left))[0]
    return threshold


def _threshold_in(values: Tensor, part: Tensor, limits: _Limits) -> tuple[Tensor, Tensor]:
    """Threshold and number of kept among `values`, the row's best, descending. k beyond them counts as off."""
    width = values.shape[1]
    kth = values.gather(1, limits.top_k.clamp(max=width) - 1)
    kth = torch.where((limits.top_k <= width) & (limits.top_k < part.shape[1]), kth, -math.inf)
    base = torch.maximum(kth, limits.floor)
    if limits.top_p is None:
        return base, (values >= base).sum(-1, keepdim=True)
    return _nucleus(values, limits, base, limits.weights(part, base).sum(-1, keepdim=True))


def _nucleus(values: Tensor, limits: _Limits, base: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The least kept value, and how many of `values` (descending) are kept: those with less than p before them."""
    assert limits.top_p is not None
    upto = limits.weights(values, base).cumsum(-1)
    before = functional.pad(upto[:, :-1], (1, 0))
    kept = ((before < limits.top_p * total) & (values >= base)).sum(-1, keepdim=True)
    return values.gather(1, (kept - 1).clamp_(min=0)), kept
