"""Draw a replayed trace. matplotlib is no dependency of the operator: who plots installs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from thranite_operator.autoscaling.decision import Decision
from thranite_operator.autoscaling.sample import Load
from thranite_operator.autoscaling.trace import BadTrace, Moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Point(Protocol):
    @property
    def moment(self) -> Moment: ...

    @property
    def decision(self) -> Decision: ...


def draw(points: Sequence[Point], path: Path) -> None:
    """Raises BadTrace if matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise BadTrace("--plot needs matplotlib: pip install 'thranite[plot]'") from error
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7), layout="constrained")
    begin = points[0].moment.time
    minutes = [(point.moment.time - begin) / 60 for point in points]
    _replicas(axes[0], minutes, points)
    _queue(axes[1], minutes, points)
    _kv_cache(axes[2], minutes, points)
    axes[2].set_xlabel("minutes")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _replicas(axes: Axes, minutes: list[float], points: Sequence[Point]) -> None:
    axes.step(minutes, [point.moment.current for point in points], where="post", label="replicas then")
    axes.step(minutes, [point.decision.desired for point in points], where="post", label="decided now", linestyle="--")
    axes.step(minutes, [point.decision.recommended for point in points], where="post", label="asked for", alpha=0.4)
    axes.set_ylabel("replicas")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")


def _queue(axes: Axes, minutes: list[float], points: Sequence[Point]) -> None:
    axes.plot(minutes, [sum(load.waiting for load in _loads(point)) for point in points], label="waiting")
    axes.plot(minutes, [sum(load.running for load in _loads(point)) for point in points], label="running")
    axes.set_ylabel("requests")
    axes.legend(loc="upper left")


def _kv_cache(axes: Axes, minutes: list[float], points: Sequence[Point]) -> None:
    shares = []
    for point in points:
        loads = _loads(point)
        shares.append(100 * sum(load.kv_cache_usage for load in loads) / len(loads) if loads else float("nan"))
    axes.plot(minutes, shares)
    axes.set_ylabel("KV cache use, %")
    axes.set_ylim(0, 100)


def _loads(point: Point) -> list[Load]:
    return [pod.load for pod in point.moment.pods if pod.load is not None]
