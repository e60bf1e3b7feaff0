"""How long an engine step may take before the engine counts as hung.

A step is allowed max(10 s, 20 times its predicted time). The prediction is a least-squares fit of seconds over
(1, tokens, context) with exponential forgetting, kept while the engine runs. Loads far beyond what was seen are
predicted to grow in proportion, which no step exceeds: its work per token only falls with its size.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_ALLOWED_SECONDS = 10.0
ALLOWED_FACTOR = 20.0
PREPARE_SECONDS = 60.0  # for one thing that is prepared while idle
REST_SECONDS = 300.0  # to fall asleep or to wake: weights cross to the host and back, graphs are captured again
FIRST_STEP_SECONDS = 600.0  # nothing is known yet; lazy initialisation may belong to the first step
FORGETTING = 0.98
RIDGE = 1e-6
SCALES = (1.0, 1e3, 1e5)  # of the features, so that the normal equations stay well conditioned


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step is about to do: tokens it may compute, and tokens of context in the KV cache."""

    tokens: int
    context: int


class StepTimeFit:
    """Learns from (load, seconds) pairs; `allowed` is what the stall rule gives a load."""

    def __init__(self) -> None:
        self._matrix = [[RIDGE if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._vector = [0.0, 0.0, 0.0]
        self._largest = StepLoad(0, 0)
        self._slowest = 0.0
        self._count = 0

    def observe(self, load: StepLoad, seconds: float) -> None:
        x = _features(load)
        for i in range(3):
            self._vector[i] = FORGETTING * self._vector[i] + x[i] * seconds
            for j in range(3):
                self._matrix[i][j] = FORGETTING * self._matrix[i][j] + x[i] * x[j]
            self._matrix[i][i] += RIDGE
        self._largest = StepLoad(max(self._largest.tokens, load.tokens), max(self._largest.context, load.context))
        self._slowest = max(FORGETTING * self._slowest, seconds)
        self._count += 1

    def predict(self, load: StepLoad) -> float | None:
        """Seconds of a step with this load; None before the first observation."""
        if self._count == 0:
            return None
        fitted = sum(c * f for c, f in zip(_solve(self._matrix, self._vector), _features(load), strict=True))
        beyond = max(
            load.tokens / max(self._largest.tokens, 1),
            load.context / max(self._largest.context, 1) if self._largest.context else 1.0,
        )
        return max(fitted, self._slowest * beyond if beyond > 1.0 else 0.0, 0.0)

    def allowed(self, load: StepLoad) -> float:
        predicted = self.predict(load)
        if predicted is None:
            return FIRST_STEP_SECONDS
        return max(MIN_ALLOWED_SECONDS, ALLOWED_FACTOR * predicted)


def _features(load: StepLoad) -> tuple[float, float, float]:
    return (1.0, load.tokens / SCALES[1], load.context / SCALES[2])


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Gaussian elimination with pivoting; the ridge keeps the matrix regular."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in range(column + 1, size):
            factor = rows[below][column] / rows[column][column]
            rows[below] = [b - factor * c for b, c in zip(rows[below], rows[column], strict=True)]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][k] * solution[k] for k in range(row + 1, size))
        solution[row] = (rows[row][size] - known) / rows[row][row]
    return solution
