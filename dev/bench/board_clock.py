"""What a GPU's board does while something is measured: its SMs' clock and its power, by NVML where it is there."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from threading import Thread

import torch
from kernel_cases import Run

NVML_CLOCK_SM = 1  # nvmlClockType_t
PERIOD = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """The board at one time."""

    seconds: float  # of `time.perf_counter`
    mhz: float
    watts: float  # mean of the last second, on Hopper
    joules: float  # since the driver was loaded


@dataclass(frozen=True, slots=True)
class Means:
    """The board over a time."""

    mhz: float
    watts: float

    @classmethod
    def of(cls, samples: list[Sample]) -> Means:
        """Watts are what the energy counter gained between its first step and its last; where it has not moved on
        twice, the mean of the readings, which lag behind by up to a second."""
        steps = [after for before, after in pairwise(samples) if after.joules != before.joules]
        if len(steps) > 1:
            watts = (steps[-1].joules - steps[0].joules) / (steps[-1].seconds - steps[0].seconds)
        else:
            watts = fmean(sample.watts for sample in samples)
        return cls(fmean(sample.mhz for sample in samples), watts)


class Clock:
    """Reads the board from now on."""

    def __init__(self, run: Run) -> None:
        self._samples: list[Sample] = []
        if run.cuda:
            Thread(target=self._read, args=[f"GPU-{torch.cuda.get_device_properties(0).uuid}"], daemon=True).start()

    def _read(self, board: str) -> None:
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        handle, clock = ctypes.c_void_p(), ctypes.c_uint()
        milliwatts, millijoules = ctypes.c_uint(), ctypes.c_ulonglong()
        library.nvmlInit_v2()
        if library.nvmlDeviceGetHandleByUUID(board.encode(), ctypes.byref(handle)) != 0:
            return
        while True:
            failed = library.nvmlDeviceGetClockInfo(handle, NVML_CLOCK_SM, ctypes.byref(clock))
            failed |= library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts))
            library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))  # 0 where it has none
            if not failed:
                self._samples.append(
                    Sample(time.perf_counter(), clock.value, milliwatts.value / 1e3, millijoules.value / 1e3)
                )
            time.sleep(PERIOD)

    def means(self, begin: float) -> Means | None:
        """Since a time of `time.perf_counter`; None: the board tells nothing."""
        taken = [sample for sample in self._samples if sample.seconds >= begin]
        return Means.of(taken) if taken else None

    def since(self, begin: float) -> str:
        """The same in words."""
        means = self.means(begin)
        return "clock unknown" if means is None else f"{means.mhz:.0f} MHz, {means.watts:.0f} W"
