"""The counter generator bit by bit, the sampler token by token against a sorting reference, and its distribution."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.launch import int32
from thranite_kernels.logprobs import logprobs, logprobs_reference
from thranite_kernels.rng import gumbel_reference, random_bits, random_bits_reference
from thranite_kernels.sampler import (
    SamplerScratch,
    SamplingState,
    filter_reference,
    sample,
    sample_reference,
    scaled_reference,
)
from thranite_kernels.shaping import RowMasks, ShapingState, shape, shape_reference
from thranite_kernels.testing import assert_close


def test_random_bits_are_exact(device: str) -> None:
    """uint32 values agree with integer arithmetic in Python for negative and large seeds."""
    seeds, indices, positions = [0, -1, 1 << 62, 12345], [0, 3, 1, 0], [0, 1, 70000, 2**31 - 1]
    actual = random_bits(torch.tensor(seeds, device=device), int32(indices, device), int32(positions, device), 1500)
    expected = random_bits_reference(seeds, indices, positions, torch.arange(1500))
    assert torch.equal(actual.cpu(), expected)


def test_random_bits_look_random() -> None:
    """Means of bits, and of neighbours' agreement, within five standard errors; keys one apart are unrelated."""
    bits = random_bits_reference([7] * 40, [0] * 40, list(range(40)), torch.arange(4000))
    each = (bits[..., None] >> torch.arange(32)) & 1
    error = 5 * 0.5 / bits.numel() ** 0.5
    assert bool(((each.double().mean((0, 1)) - 0.5).abs() < error).all())
    for other in (each.roll(1, 0), each.roll(1, 1)):
        assert bool((((each == other).double().mean((0, 1)) - 0.5).abs() < error).all())
    gumbel = gumbel_reference(bits)
    assert abs(float(gumbel.mean()) - 0.5772) < 0.02
    assert abs(float(gumbel.var()) - 1.6449) < 0.05


ROWS = {
    # temperature, top_k, top_p, min_p, repetition, presence, frequency
    "greedy": (0.0, 5, 0.5, 0.1, 1.0, 0.0, 0.0),
    "plain": (0.7, 0, 1.0, 0.0, 1.0, 0.0, 0.0),
    "top_k": (1.0, 20, 1.0, 0.0, 1.0, 0.0, 0.0),
    "top_p": (1.3, 0, 0.8, 0.0, 1.0, 0.0, 0.0),
    "flat_top_p": (60.0, 0, 0.95, 0.0, 1.0, 0.0, 0.0),
    "min_p": (0.9, 0, 1.0, 0.05, 1.0, 0.0, 0.0),
    "all": (0.6, 50, 0.9, 0.05, 1.1, 0.2, 0.3),
    "one": (1.0, 1, 1.0, 0.0, 1.0, 0.0, 0.0),
    "huge_k": (1.0, 9000, 1.0, 0.0, 1.0, 0.0, 0.0),
    "k_and_p": (2.0, 300, 0.7, 0.0, 1.0, 0.0, 0.0),
    "min_p_and_p": (4.0, 0, 0.9, 1e-4, 1.0, 0.0, 0.0),
}


def _state(device: str, rows: int, names: list[str]) -> SamplingState:
    state = SamplingState.allocate(rows, device)
    table = torch.tensor([ROWS[n] for n in names], device=device)
    for i, field in enumerate(("temperature", "top_k", "top_p", "min_p")):
        getattr(state, field).copy_(table[:, i])
    state.seed.copy_(torch.arange(rows) * 1000003 - 5)
    state.sample_index.copy_(torch.arange(rows) % 3)
    return state


def _shaping(device: str, slots: int, vocab: int, names: list[str]) -> ShapingState:
    """Penalties by name; of three slots one has a bias, two have stop tokens, and all but the fourth have counts."""
    state = ShapingState.allocate(slots, vocab, device, rows=slots)
    table = torch.tensor([ROWS[n] for n in names], device=device)
    for i, field in enumerate(("repetition", "presence", "frequency"), 4):
        getattr(state, field).copy_(table[:, i])
    each = torch.arange(slots, dtype=torch.int32)
    state.counts.row.copy_(torch.where(each == 3, -1, each.flip(0)))
    state.bias.row.copy_(torch.where(each % 3 == 0, (each + 1) % slots, -1))
    state.stops.row.copy_(torch.where(each % 3 > 0, each, -1))
    state.counts.table.copy_((torch.rand(slots, vocab) < 0.2) * torch.randint(1, 8, (slots, vocab)))
    state.bias.table.copy_((torch.rand(slots, vocab) < 0.1) * torch.randn(slots, vocab) * 5)
    state.bias.table[1, : vocab // 3] = -torch.inf
    state.stops.table.copy_(torch.randint(-(2**31), 2**31 - 1, state.stops.table.shape))
    state.min_position.fill_(30)
    return state


def _masks(device: str, rows: int, vocab: int) -> RowMasks:
    words = torch.randint(-(2**31), 2**31 - 1, (4, -(-vocab // 32)), dtype=torch.int32, device=device)
    return RowMasks(words, int32([r % 5 - 1 for r in range(rows)], device))


@pytest.mark.parametrize(("vocab", "dtype"), [(70, torch.float32), (1000, torch.float16), (12345, torch.float32)])
@pytest.mark.parametrize("masked", [False, True])
def test_shaping_is_the_references(device: str, vocab: int, dtype: torch.dtype, masked: bool) -> None:
    """Every kind of row in one batch and in any slot, a padded row among them; bit for bit."""
    names = [*ROWS]
    rows = len(names)
    state = _shaping(device, rows, vocab, names)
    logits = (torch.randn(rows, vocab, device=device) * 3).to(dtype)
    slots = int32([(r + 4) % rows for r in range(rows)], device)
    slots[1] = -1
    positions = int32([7 * r for r in range(rows)], device)
    masks = _masks(device, rows, vocab) if masked else RowMasks.none(rows, vocab, device)
    expected = shape_reference(logits, state, slots, positions, masks)
    live = slots >= 0
    assert torch.equal(shape(logits, state, slots, positions, masks)[live], expected[live])
    late = torch.full_like(positions, 30)
    expected = shape_reference(logits, state, slots, late, masks)
    assert torch.equal(shape(logits, state, slots, late, masks, bans=False)[live], expected[live])


def test_stop_tokens_stay_where_nothing_else_is_left(device: str) -> None:
    """The second row's mask allows stop tokens alone, in another chunk than the first."""
    vocab = 5000
    state = ShapingState.allocate(2, vocab, device, rows=2)
    state.stops.row.copy_(torch.arange(2))
    state.stops.table[:, 4500 // 32] = 1 << (4500 % 32)
    state.min_position.fill_(9)
    words = torch.zeros(1, -(-vocab // 32), dtype=torch.int32, device=device)
    words[0, 4500 // 32] = 1 << (4500 % 32)
    logits = torch.randn(2, vocab, device=device)
    slots, positions = int32([0, 1], device), int32([8, 8], device)
    shaped = shape(logits, state, slots, positions, RowMasks(words, int32([-1, 0], device)))
    assert torch.isneginf(shaped).sum(1).tolist() == [1, vocab - 1]
    assert float(shaped[0, 4500]) == -torch.inf
    assert float(shaped[1, 4500]) == float(logits[1, 4500])


@pytest.mark.parametrize(
    ("vocab", "shaped", "masked"),
    [(1000, False, False), (1000, True, True), (12345, False, False), (12345, True, False), (20011, True, True)],
)
def test_tokens_match_reference(device: str, vocab: int, shaped: bool, masked: bool) -> None:
    """Every kind of row in one batch, a padded row among them; last tokens and counts are committed."""
    names = [*ROWS]
    rows = len(names)
    state, shaping = _state(device, rows, names), _shaping(device, rows, vocab, names)
    logits = torch.randn(rows, vocab, device=device) * 3
    logits[:, : vocab // 2] = logits[:, : vocab // 2].to(torch.bfloat16).float()  # ties
    slots = int32(list(range(rows)), device)
    slots[1] = -1
    positions = int32([7 * r for r in range(rows)], device)
    masks = _masks(device, rows, vocab) if masked else RowMasks.none(rows, vocab, device)
    if shaped:
        logits = shape_reference(logits, shaping, slots, positions, masks)
    expected = sample_reference(logits, state, slots, positions)
    last = torch.full((rows,), -9, dtype=torch.int32, device=device)
    before = shaping.counts.table.clone()
    scratch = SamplerScratch.allocate(rows, vocab, device)
    counts = shaping.counts if shaped else None
    actual = sample(logits, state, slots, positions, scratch, last_token=last, counts=counts)
    assert actual.tolist() == expected.tolist()
    assert last.tolist() == [-9 if s < 0 else t for s, t in zip(slots.tolist(), expected.tolist(), strict=True)]
    for slot, token in zip(slots.tolist(), expected.tolist(), strict=True):
        row = int(shaping.counts.row[slot])
        if shaped and slot >= 0 and row >= 0:
            before[row, token] += 2
    assert torch.equal(shaping.counts.table, before)


@pytest.mark.parametrize("spread", [0.02, 1.0])
@pytest.mark.parametrize("vocab", [6000, 9001])
def test_thresholds_among_ties_and_for_any_k(device: str, vocab: int, spread: float) -> None:
    """k that few groups of neighbours hold, many, and more than fit a tile; rounded logits make ties by hundreds."""
    choices = [(k, p, m) for k in (1, 50, 63, 65, 200, 257, 3000) for p, m in ((1.0, 0.0), (0.8, 0.0), (0.9, 0.3))]
    rows = len(choices)
    state = SamplingState.allocate(rows, device)
    state.top_k.copy_(torch.tensor([k for k, _, _ in choices]))
    state.top_p.copy_(torch.tensor([p for _, p, _ in choices]))
    state.min_p.copy_(torch.tensor([m for _, _, m in choices]))
    state.seed.copy_(torch.arange(rows))
    logits = (torch.randn(rows, vocab, device=device) * spread).to(torch.bfloat16).float()
    logits[::2] = logits[::2].sort(descending=True).values  # the candidates are neighbours
    slots, positions = int32(list(range(rows)), device), int32([5] * rows, device)
    scratch = SamplerScratch.allocate(rows, vocab, device)
    expected = sample_reference(logits, state, slots, positions)
    assert sample(logits, state, slots, positions, scratch).tolist() == expected.tolist()


def test_top_p_counts_what_no_candidate_holds(device: str) -> None:
    """Few tokens: those too unlikely to be candidates weigh enough together to move the edge of the nucleus."""
    rows, vocab = 48, 131
    state = _state(device, rows, ["top_p"] * rows)
    logits = torch.randn(rows, vocab, device=device) * 2
    slots, positions = int32(list(range(rows)), device), int32([3 * r for r in range(rows)], device)
    scratch = SamplerScratch.allocate(rows, vocab, device)
    expected = sample_reference(logits, state, slots, positions)
    assert sample(logits, state, slots, positions, scratch).tolist() == expected.tolist()


def test_tokens_depend_on_seed_index_and_position_alone(device: str) -> None:
    """The same key in another row, slot and batch size draws the same token; another position does not."""
    logits = torch.randn(1, 3000, device=device)
    state = SamplingState.allocate(6, device)
    state.seed.fill_(99)
    scratch = SamplerScratch.allocate(6, 3000, device)
    one = sample(logits, state, int32([5], device), int32([41], device), scratch, filters=False)
    positions = int32([41, 42, 41, 43, 41, 44], device)
    many = sample(logits.expand(6, -1), state, int32([3, 0, 1, 2, 4, 5], device), positions, scratch, filters=False)
    assert many.tolist()[::2] == one.tolist() * 3
    assert len(set(many.tolist())) > 1


def test_distribution_is_exact(device: str) -> None:
    """Chi-square of draws from 40 tokens under top-k, top-p and temperature; five standard errors.

    The interpreter takes 0.1 s a row, so there the reference draws, which `test_tokens_match_reference` holds to the
    kernels token by token.
    """
    draws, vocab = (200_000 if device == "cuda" else 4_000), 40
    state = SamplingState.allocate(1, device)
    state.temperature.fill_(0.8)
    state.top_k.fill_(25)
    state.top_p.fill_(0.9)
    logits = torch.randn(1, vocab, device=device) * 1.5
    x = scaled_reference(logits, state, int32([0], device))
    kept = filter_reference(x, state.top_k, state.top_p, state.min_p)
    exact = x.double().masked_fill(~kept, -torch.inf).softmax(-1)[0].cpu()
    counts = torch.zeros(vocab, dtype=torch.float64)
    rows = 500
    scratch = SamplerScratch.allocate(rows, vocab, device)
    for start in range(0, draws, rows):
        positions = torch.arange(start, start + rows, dtype=torch.int32, device=device)
        arguments = (logits.expand(rows, -1), state, torch.zeros_like(positions), positions)
        tokens = sample(*arguments, scratch) if device == "cuda" else sample_reference(*arguments)
        counts += torch.bincount(tokens.cpu(), minlength=vocab)
    assert bool((counts[exact == 0] == 0).all())
    live = exact > 0
    expected = exact[live] * draws
    chi = float(((counts[live] - expected).square() / expected).sum())
    freedom = int(live.sum()) - 1
    assert chi < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("vocab", [700, 4096 * 5 + 3])
@pytest.mark.parametrize("kind", ["greedy", "plain", "all"])
def test_a_row_without_candidates_ends(device: str, kind: str, vocab: int) -> None:
    """A row whose tokens are all ruled out, and one of NaN, still give a token id within the vocabulary; a NaN among
    numbers is not drawn, and no alternative lies outside."""
    state = _state(device, 3, [kind] * 3)
    logits = torch.full((3, vocab), -torch.inf, device=device)
    logits[1:] = float("nan")
    logits[2, 5] = 1.0
    scratch = SamplerScratch.allocate(3, vocab, device)
    for filters in (False, True):
        slots = int32([0, 1, 2], device)
        tokens = sample(logits, state, slots, int32([1, 2, 3], device), scratch, filters=filters)
        assert tokens.tolist() == [0, 0, 5]
    best = logprobs(logits, tokens, 3).top_ids[:, :3]
    assert bool(((best >= 0) & (best < vocab)).all())


@pytest.mark.parametrize(("rows", "vocab", "top"), [(3, 9001, 5), (2, 70, 20), (1, 4096, 0)])
def test_logprobs(device: str, rows: int, vocab: int, top: int) -> None:
    """Chosen, rank and alternatives, ties by id; a row that wants nothing is skipped."""
    logits = (torch.randn(rows, vocab, device=device) * 3).to(torch.bfloat16)  # hundreds of ties a row
    tokens = torch.randint(0, vocab, (rows,), dtype=torch.int32, device=device)
    expected = logprobs_reference(logits, tokens, top)
    actual = logprobs(logits, tokens, top)
    assert_close(actual.chosen, expected.chosen, rms=1e-5)
    assert actual.rank.tolist() == expected.rank.tolist()
    assert actual.top_ids[:, :top].tolist() == expected.top_ids.tolist()
    assert_close(actual.top_values[:, :top], expected.top_values, rms=1e-5)
    wanted = int32([-1] + [min(top, 2)] * (rows - 1), device)
    some = logprobs(logits, tokens, top, wanted=wanted)
    assert some.top_ids[1:, : min(top, 2)].tolist() == expected.top_ids[1:, : min(top, 2)].tolist()
    assert some.chosen[1:].tolist() == actual.chosen[1:].tolist()
