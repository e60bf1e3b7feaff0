"""The contract between engine and device: one `StepPlan` in, one `StepResult` out. Plain data, no torch.

A device keeps state per slot (last token, length, block tables, sampling parameters); a plan carries differences only.
Plans are executed in order on one stream, so a page freed by plan N may be written by plan N+1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from thranite.request import TokenLogprobs
from thranite.sampling_params import Pooling, TokenParams

NULL_BLOCK = 0  # page 0 takes the writes of padded rows and stands for pages freed behind a window


@dataclass(frozen=True, slots=True)
class SlotStart:
    """A sequence takes a slot: everything the slot held before is void.

    `token_ids`: prompt and output so far (penalties count them); the first `prompt_len` are the prompt.
    `length`: tokens whose KV the slot's pages hold already (prefix hit, or the shared prompt of a fork).
    """

    slot: int
    sample_index: int
    params: TokenParams
    token_ids: Sequence[int]
    prompt_len: int
    length: int
    late_mask: bool = False  # the slot's samples wait for a bitmask (grammar, multi-token bad words)


@dataclass(frozen=True, slots=True)
class BlockUpdate:
    """Pages `blocks` become entries `first`, `first + 1`, … of the slot's table in KV group `group`."""

    group: int
    slot: int
    first: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Tokens the host knows (a prompt or its part, or a recomputed sequence): positions start … start + len - 1.

    `samples`: the slots that draw a token from the last position's logits: empty while the prompt goes on, the
    sequence's own slot at its end, and those of its forks for n > 1 (their `SlotStart`s are in the same plan).
    `prompt_logprobs`: the k for which each of these tokens' successors is to be scored; `targets` are those successors
    (one fewer than `token_ids` if the prompt ends here). `pooling`: the sum of these tokens' final hidden states is
    wanted (mean), or the last one's (last).
    """

    slot: int
    start: int
    token_ids: Sequence[int]
    samples: tuple[int, ...]
    prompt_logprobs: int | None = None
    targets: Sequence[int] = ()
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Order of execution: copies, starts and block updates, forward, sampling.

    `decodes`: slots that compute one token, the one they sampled last (it may still be in flight), and sample another.
    `copies`: (source, destination) pages, whole, in every layer (copy on write).
    Samples come in the order of `sample_slots`.
    """

    step: int
    decodes: Sequence[int] = ()
    prefills: Sequence[Prefill] = ()
    starts: Sequence[SlotStart] = ()
    blocks: Sequence[BlockUpdate] = ()
    copies: Sequence[tuple[int, int]] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(len(p.token_ids) for p in self.prefills)

    @property
    def sample_slots(self) -> list[int]:
        return [*self.decodes, *(slot for p in self.prefills for slot in p.samples)]

    @property
    def reads_prompts(self) -> bool:
        """Whether hidden states are wanted of other tokens than those that samples follow."""
        return any(p.prompt_logprobs is not None or p.pooling is not None for p in self.prefills)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought, row for row of the plan's `sample_slots`: 0 to k tokens each.

    `logprobs`: by row, for the rows that asked, an entry a token; they may be made when they are read.
    `prompt_logprobs`: by index into `plan.prefills`, one entry a target.
    """

    tokens: Sequence[tuple[int, ...]]
    logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    pooled: Mapping[int, Sequence[float]] = field(default_factory=dict)  # by index into plan.prefills


# slot → packed bitmask, little-endian uint32 words, bit t set: token t is allowed. ceil(vocab / 32) words.
Bitmasks = Mapping[int, bytes]


class Executor(Protocol):
    """A device. Not thread-safe: one thread calls. Steps form a queue of depth at most two."""

    def launch(self, plan: StepPlan) -> None:
        """Begin the step: state changes and forward pass. Must not wait for earlier steps' results."""

    def sample(self, masks: Bitmasks) -> None:
        """Begin sampling of the step launched last; `masks` for its slots that wait for one. Called once a step."""

    def collect(self) -> StepResult:
        """Wait for the oldest step not yet collected."""

    def prepare(self) -> bool:
        """Between steps, while there is nothing else to do: one thing, of tenths of a second as a rule, that makes
        later steps faster and changes no result's meaning. False: nothing is left to prepare."""

    def sleep(self) -> int:
        """Weights to host memory, the KV cache's pages void, the device's memory given back; returns its bytes.

        Between steps only; until `wake` nothing else is called but `close`.
        """

    def wake(self) -> int:
        """As before the sleep, with an empty KV cache. Returns bytes that the device lacks: 0, or it sleeps on."""

    def close(self) -> None:
        """Free the device, awake or asleep."""
