"""How many prompt tokens a step takes in while sequences decode.

A step with a long prompt makes everybody who decodes wait for it, so prompts are cut where they would prolong a step
by much more than it takes without them (chunked prefill: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM
Inference with Sarathi-Serve", 2024). Where prompts pile up, their share doubles, and grows with the pile: every step
decodes besides, so a pile that is cut small takes ever longer to work off. Fed with measured times only, so what is no
device's pace (a null device's) bounds nothing.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from thranite.engine.step_pace import LONG_PROMPT

LAST_STEPS = 16  # of each kind
FEW_DECODES = 8  # so few sequences wait for a whole prompt: a first token is worth more than their next ones
LEAST_TOKENS = 256  # of prompts in a step: smaller pieces cost a device as much as this one
PILE = 3  # times their share: so many tokens of prompts are a pile
PILE_SHARE = 2  # times their share: what prompts take of a step that works off a pile
PILE_STEPS = 4  # a larger pile is worked off in about so many steps, as far as the token budget allows
GRAIN = 128  # tokens: devices compute in tiles, so a step's tokens are a multiple of this


class PromptShare:
    """Pure; times in seconds. `ratio`: prompts prolong a step by at most so many times what it takes without them."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._decodes: deque[float] = deque(maxlen=LAST_STEPS)
        self._tokens: deque[float] = deque(maxlen=LAST_STEPS)  # seconds a prompt token

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        if prompt_tokens == 0:
            self._decodes.append(seconds)
        elif prompt_tokens >= LONG_PROMPT and self._decodes:
            self._tokens.append(max(seconds - median(self._decodes), 0.0) / prompt_tokens)

    def tokens(self, decodes: int, pile: int) -> int | None:
        """At most so many tokens of prompts beside `decodes` sequences that decode; None: as many as there is room for.

        `pile`: tokens of prompts that are still to be computed and could be now.
        """
        if decodes < FEW_DECODES or not self._tokens:
            return None
        each = median(self._tokens)
        if each <= 0.0:
            return None
        wanted = max(int(self._ratio * median(self._decodes) / each), LEAST_TOKENS)
        if pile >= PILE * wanted:
            wanted = max(PILE_SHARE * wanted, pile // PILE_STEPS)
        return (decodes + wanted) // GRAIN * GRAIN - decodes
