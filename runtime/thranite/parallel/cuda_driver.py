"""The few calls of NVIDIA's driver that map one process's GPU memory into another: torch offers them only for its own
allocator's blocks and its own pickled form.

They act on the calling thread's current context, which torch's first use of a GPU makes.
"""

from __future__ import annotations

import ctypes

LAZY_ENABLE_PEER_ACCESS = 1


class CudaDriverError(Exception):
    """A call that failed, and what the driver says of it."""


class _Handle(ctypes.Structure):
    """CUipcMemHandle: passed by value."""

    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


class CudaDriver:
    """Raises CudaDriverError; where there is no driver, already when made."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaDriverError(f"no CUDA driver: {error}") from error

    def can_access(self, device: int, peer: int) -> bool:
        """Whether kernels on `device` can read and write the memory of `peer`."""
        can = ctypes.c_int()
        self._call("cuDeviceCanAccessPeer", ctypes.byref(can), ctypes.c_int(device), ctypes.c_int(peer))
        return bool(can.value)

    def allocate(self, size: int) -> int:
        """The address of so many bytes of the current device, all zero."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")
        return address.value

    def handle(self, address: int) -> bytes:
        """64 bytes by which another process of this machine maps an allocation."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """The address at which this process sees another's allocation."""
        address = ctypes.c_uint64()
        if len(handle) != ctypes.sizeof(_Handle):
            raise CudaDriverError(f"a memory handle of {len(handle)} bytes")
        given = _Handle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, ctypes.c_uint(LAZY_ENABLE_PEER_ACCESS))
        return address.value

    def close(self, address: int) -> None:
        """Unmap what `open` mapped."""
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise CudaDriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


def gpu_count() -> int:
    """GPUs that this process may use, without torch; 0 where there is no driver."""
    count = ctypes.c_int()
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    if library.cuInit(ctypes.c_uint(0)) or library.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
