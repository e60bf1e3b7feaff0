"""The shape of a step on a GPU, plain data."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.engine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """Room in a step as the device sees it: what a plan needs, or more, where padding fills it up.

    Rows that decode come first, a token each, then prompts' rows. Their tokens stand in that order without gaps, so
    `tokens` holds any split among `decodes` and `prompts` rows.
    """

    decodes: int
    prompts: int
    samples: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.decodes + self.prompts

    @property
    def parts(self) -> list[int]:
        """Lengths of what `cuda_inputs.pack` puts together, in its order."""
        return [self.rows] * 4 + [self.samples] * 2 + [self.tokens]

    def holds(self, other: StepShape) -> bool:
        return (
            self.tokens >= other.tokens
            and self.decodes >= other.decodes
            and self.prompts >= other.prompts
            and self.samples >= other.samples
        )


def shape_of(plan: StepPlan) -> StepShape:
    """Without padding."""
    return StepShape(len(plan.decodes), len(plan.prefills), len(plan.sample_slots), plan.num_tokens)
