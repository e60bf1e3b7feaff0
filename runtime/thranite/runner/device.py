"""Which torch device an engine runs on, and what memory it has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thranite.config import Device
from thranite.errors import ConfigError
from thranite.loader.device_memory import DeviceMemory
from thranite.loader.gpus import check_capability


def pick_device(device: Device, rank: int = 0, size: int = 1) -> torch.device:
    """auto: a GPU if there is one, else the CPU. Each of several ranks takes the GPU of its number."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no GPU",
            "check the driver and NVIDIA_VISIBLE_DEVICES, or pass --device cpu",
        )
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        torch.cuda.init()
        if size > 1:
            torch.cuda.set_device(rank)
        major, minor = torch.cuda.get_device_capability()
        check_capability(torch.cuda.get_device_name(), 10 * major + minor)
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def uses_gpus(device: str) -> bool:
    """Whether `pick_device` will."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def check_gpus(size: int, possible: Sequence[int] = ()) -> None:
    """Raise ConfigError if there are fewer GPUs than ranks. `possible`: sizes that the model can be split into."""
    gpus = torch.cuda.device_count()
    if size > gpus:
        fitting = [str(count) for count in possible if count <= gpus]
        raise ConfigError(
            f"--tensor-parallel-size {size}: torch sees {gpus} GPU{'' if gpus == 1 else 's'}",
            f"possible here: {', '.join(fitting)}" if fitting else "check the driver and NVIDIA_VISIBLE_DEVICES",
        )


def device_memory(device: torch.device) -> DeviceMemory:
    """Total and free bytes of a GPU, before this process loads anything."""
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory("cuda", torch.cuda.get_device_name(device), total, free)
