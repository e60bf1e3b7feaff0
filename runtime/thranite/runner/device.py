"""Which torch device an engine runs on, and what memory it has."""

from __future__ import annotations

import torch

from thranite.config import Device
from thranite.errors import ConfigError
from thranite.loader.device_memory import DeviceMemory


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
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_memory(device: torch.device) -> DeviceMemory:
    """Total and free bytes of a GPU, before this process loads anything."""
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory("cuda", torch.cuda.get_device_name(device), total, free)
