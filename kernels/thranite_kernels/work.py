"""What a launch must do at least: bytes through device memory and floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_SECOND = 4.3e12
"""Device memory of the reference GPU (H200): a device-to-device copy, bytes read plus bytes written."""

FLOPS_PER_SECOND = 780e12
"""Dense bf16 tensor-core rate of the reference GPU: an 8192-cubed product on random data."""


@dataclass(frozen=True, slots=True)
class Work:
    """Compulsory traffic and arithmetic: every input read once, every output written once."""

    bytes: int
    flops: int = 0

    def floor_seconds(
        self, bytes_per_second: float = BYTES_PER_SECOND, flops_per_second: float = FLOPS_PER_SECOND
    ) -> float:
        """The larger of the two times: no version runs much faster than this."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)
