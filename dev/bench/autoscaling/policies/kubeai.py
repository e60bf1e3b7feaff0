"""KubeAI: substratusai/kubeai, internal/modelautoscaler/autoscaler.go, internal/modelclient/scale.go.

Every 10 s, the mean of the proxy's active requests over 10 minutes ÷ targetRequests; down after 30 s of asking for
less. Its default of 100 requests is for an engine of 256 sequences (vLLM's default), hence 100 ÷ 256 of a replica's.
"""

from __future__ import annotations

import math
from collections import deque

from autoscaling.plant import View

TARGET_SHARE = 100 / 256
WINDOW_SECONDS, SCALE_DOWN_DELAY_SECONDS = 600.0, 30.0


class KubeAI:
    name = "KubeAI"
    interval = 10.0

    def __init__(self, slots: int) -> None:
        self._target = TARGET_SHARE * slots
        self._history: deque[int] = deque(maxlen=math.ceil(WINDOW_SECONDS / self.interval))
        self._downs = 0

    def decide(self, view: View) -> int:
        """The history begins as that of the size found: the source restores it from a ConfigMap."""
        if not self._history:
            self._history.extend([round(view.current * self._target)] * (self._history.maxlen or 0))
        self._history.append(view.in_flight)
        size = max(math.ceil(sum(self._history) / len(self._history) / self._target), 1)
        if size >= view.current:
            self._downs = 0
            return size
        if self._downs < math.ceil(SCALE_DOWN_DELAY_SECONDS / self.interval):
            self._downs += 1
            return view.current
        return size
