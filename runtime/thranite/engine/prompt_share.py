"""How many prompt tokens a step takes in while sequences decode.

A step with a long prompt makes everybody who decodes wait for it, so prompts are cut where they would prolong a step
by much more than it takes without them (chunked prefill: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM
Inference with Sarathi-Serve", 2024). Where prompts pile up, every step that decodes besides makes the last of them wait
longer: a pile that can be worked off in a short while is, and who decodes pauses meanwhile; a larger one takes a larger
share, which grows with it. Fed with measured times only, so what is no device's pace (a null device's) bounds nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from thranite.engine.step_pace import LONG_PROMPT

LAST_STEPS = 16  # of each kind
FEW_DECODES = 8  # so few sequences wait for a whole prompt: a first token is worth more than their next ones
LEAST_TOKENS = 256  # of prompts in a step: smaller pieces cost a device as much as this one
PILE = 3  # times their share: so many tokens of prompts are a pile
PILE_SHARE = 2  # times their share: what prompts take of a step that works off a larger pile
PILE_STEPS = 4  # and in about so many steps, as far as the token budget allows
GRAIN = 128  # tokens: devices compute in tiles, so a step's tokens are a multiple of this

LONGEST_PAUSE = 0.1  # seconds that sequences which decode wait for a pile; for one that takes longer they do not wait
PAUSE_TOKENS = 1024  # of a step without them: larger ones are hardly quicker a token, and whoever comes waits for them
LEAST_PAUSED = 1280  # tokens, and two shares, that they wait for: fewer are soon computed beside them
PAUSE_EVERY = 128  # steps, in the long run: of the gaps between tokens fewer than one in a hundred is a pause
SAVED_PAUSES = 4  # bursts come in groups


@dataclass(frozen=True, slots=True)
class Share:
    """A step computes at most `tokens`, None: as many as it has room for. `pause`: none of sequences that decode."""

    tokens: int | None
    pause: bool = False


class PromptShare:
    """Times in seconds. `ratio`: prompts prolong a step by at most so many times what it takes without them."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._decodes: deque[float] = deque(maxlen=LAST_STEPS)
        self._tokens: deque[float] = deque(maxlen=LAST_STEPS)  # seconds a prompt token
        self._paused = 0.0  # seconds of the pause under way
        self._pauses = float(SAVED_PAUSES)  # that may be made

    def observe(self, prompt_tokens: int, decodes: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if decodes and prompt_tokens == 0:
            self._decodes.append(seconds)
        elif decodes and prompt_tokens >= LONG_PROMPT and self._decodes:
            self._tokens.append(max(seconds - median(self._decodes), 0.0) / prompt_tokens)

    def next(self, decodes: int, pile: int, may_pause: bool) -> Share:
        """Of the step that is planned now, while `decodes` sequences decode; a pause counts as made.

        `pile`: tokens of prompts that are still to be computed and could be now.
        """
        if decodes < FEW_DECODES or not self._tokens:
            return Share(None)
        each = median(self._tokens)
        if each <= 0.0:
            return Share(None)
        wanted = max(int(self._ratio * median(self._decodes) / each), LEAST_TOKENS)
        if may_pause and pile >= max(2 * wanted, LEAST_PAUSED) and self._pause(pile):
            return Share(PAUSE_TOKENS, pause=True)
        self._paused = 0.0
        self._pauses = min(self._pauses + 1.0 / PAUSE_EVERY, SAVED_PAUSES)
        if pile >= PILE * wanted:
            wanted = max(PILE_SHARE * wanted, pile // PILE_STEPS)
        return Share((decodes + wanted) // GRAIN * GRAIN)

    def _pause(self, pile: int) -> bool:
        """Begin a pause or go on with one, if the pile is worked off before it would be too long."""
        begins = self._paused == 0.0
        if (begins and self._pauses < 1.0) or self._paused + self._alone(pile) > LONGEST_PAUSE:
            return False
        self._pauses -= begins
        self._paused += self._alone(PAUSE_TOKENS)
        return True

    def _alone(self, tokens: int) -> float:
        """About how long so many take: more than beside sequences that decode, whose steps read the weights anyway."""
        return tokens * median(self._tokens) + median(self._decodes)
