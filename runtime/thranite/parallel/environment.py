"""Environment variables of every rank, set before its first collective."""

from __future__ import annotations

import os

RANK_ENVIRONMENT = {
    # Ranks live in one pod: connections are made over loopback alone.
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    # NVLink multicast stays off.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    # We watch the ranks ourselves: torch's threads must neither end the process nor wait for dead ranks.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # A CUDA error is told by the thread whose call it fails: torch's watchdog would abort the process before.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}


def set_rank_environment() -> None:
    os.environ.update(RANK_ENVIRONMENT)
