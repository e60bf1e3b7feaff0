"""GPUs by name, for commands that ask none: what CUDA reports of each, with error correction on."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.errors import ConfigError
from thranite.loader.device_memory import GIB, DeviceMemory


@dataclass(frozen=True, slots=True)
class Gpu:
    """`capability`: 90 for sm_90."""

    gib: float
    capability: int
    multiprocessors: int


GPUS = {
    "T4": Gpu(14.56, 75, 40),
    "L4": Gpu(22.03, 89, 58),
    "A10G": Gpu(21.98, 86, 80),
    "RTX-4090": Gpu(23.52, 89, 128),
    "RTX-5090": Gpu(31.36, 120, 170),
    "A100-40GB": Gpu(39.39, 80, 108),
    "L40S": Gpu(44.39, 89, 142),
    "A100-80GB": Gpu(79.14, 80, 108),
    "H100": Gpu(79.10, 90, 132),
    "H200": Gpu(139.80, 90, 132),
    "B200": Gpu(178.35, 100, 148),
}
LEAST_CAPABILITY = 80


def check_capability(name: str, capability: int) -> None:
    """Raises ConfigError for a GPU that no kernel is for."""
    if capability < LEAST_CAPABILITY:
        raise ConfigError(f"no kernel is for {name}: its compute capability is {capability / 10}", "8.0 is the least")


def find_gpu(name: str, otherwise: str = "") -> str:
    """The table's name for it. Raises ConfigError if it has none; `otherwise` ends the hint."""
    wanted = _key(name)
    for known in GPUS:
        if wanted in (_key(known), _key(f"NVIDIA {known}")):
            return known
    raise ConfigError(f"unknown GPU {name!r}", f"known are {', '.join(GPUS)}{otherwise}")


def gpu(name: str) -> DeviceMemory:
    """An idle one. Raises ConfigError for a name not in the table."""
    known = find_gpu(name, "; or pass --gpu-memory 80GB")
    return gpu_of(known, int(GPUS[known].gib * GIB))


def gpu_of(name: str, total_bytes: int) -> DeviceMemory:
    """An idle GPU."""
    return DeviceMemory("cuda", name, total_bytes, total_bytes)


def _key(name: str) -> str:
    return "".join(character for character in name.upper() if character.isalnum())
