"""GPUs by name, for `thranite check`: the memory CUDA reports of each, with error correction on."""

from __future__ import annotations

from thranite.errors import ConfigError
from thranite.loader.device_memory import GIB, DeviceMemory

GPU_GIB = {
    "T4": 14.56,
    "L4": 22.03,
    "A10G": 21.98,
    "RTX-4090": 23.52,
    "RTX-5090": 31.36,
    "A100-40GB": 39.39,
    "L40S": 44.39,
    "A100-80GB": 79.14,
    "H100": 79.10,
    "H200": 139.80,
    "B200": 178.35,
}


def gpu(name: str) -> DeviceMemory:
    """Raises ConfigError for a name not in the table."""
    wanted = _key(name)
    for known in GPU_GIB:
        if wanted in (_key(known), _key(f"NVIDIA {known}")):
            return gpu_of(known, int(GPU_GIB[known] * GIB))
    raise ConfigError(f"unknown GPU {name!r}", f"known are {', '.join(GPU_GIB)}; or pass --gpu-memory 80GB")


def gpu_of(name: str, total_bytes: int) -> DeviceMemory:
    """An idle GPU."""
    return DeviceMemory("cuda", name, total_bytes, total_bytes)


def _key(name: str) -> str:
    return "".join(character for character in name.upper() if character.isalnum())
