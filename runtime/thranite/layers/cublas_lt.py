"""cuBLASLt's matrix product with the algorithm as an argument, which torch's own products choose by rule.

Through ctypes, as torch has the library loaded already. (NVIDIA, "cuBLAS Library", chapter "Using the cuBLASLt API".)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORKSPACE_BYTES = 32 << 20  # as much as torch gives cuBLAS on Hopper
_TYPES = {torch.float16: 2, torch.bfloat16: 14}  # cudaDataType_t
_FP32, _COMPUTE_FP32 = 0, 68  # cudaDataType_t, cublasComputeType_t
_TRANSPOSE_A = 3  # cublasLtMatmulDescAttributes_t
_MAX_WORKSPACE = 1  # cublasLtMatmulPreferenceAttributes_t
_CONFIGURATION = {  # cublasLtMatmulAlgoConfigAttributes_t, by number; the library insists on the sizes
    "id": ctypes.c_int32, "tile": ctypes.c_uint32, "split_k": ctypes.c_int32, "reduction": ctypes.c_uint32,
    "swizzle": ctypes.c_uint32, "custom": ctypes.c_uint32, "stages": ctypes.c_uint32, "inner": ctypes.c_uint16,
    "cluster": ctypes.c_uint16,
}  # fmt: skip


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasError(RuntimeError):
    """The library refused a call."""


@dataclass(frozen=True, slots=True)
class Product:
    """x Wᵀ of fixed sizes, x [rows, k] and W [n, k], by one algorithm. Made by `CublasLt.products`."""

    rows: int
    n: int
    k: int
    descriptor: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    algorithm: _Algorithm


class CublasLt:
    """The library on one device, with a workspace of its own: its products belong on one stream."""

    def __init__(self, device: torch.device) -> None:
        """Raises OSError where the library is not found. CublasError, here and below: it refused."""
        major = (torch.version.cuda or "").partition(".")[0]
        self._library = ctypes.CDLL(f"libcublasLt.so.{major}")
        self._device = device
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            self._call("cublasLtCreate", ctypes.byref(self._handle))
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)

    def products(self, rows: int, n: int, k: int, dtype: torch.dtype, most: int) -> Sequence[Product]:
        """Up to `most` ways that the library's heuristic finds, the one it likes best first."""
        descriptor = ctypes.c_void_p()
        self._call("cublasLtMatmulDescCreate", ctypes.byref(descriptor), _COMPUTE_FP32, _FP32)
        transpose = ctypes.c_int32(1)
        self._call("cublasLtMatmulDescSetAttribute", descriptor, _TRANSPOSE_A, ctypes.byref(transpose), _size(4))
        # By columns, yᵀ [n, rows] = (Wᵀ [k, n])ᵀ xᵀ [k, rows].
        layouts = (self._layout(k, n, dtype), self._layout(k, rows, dtype), self._layout(n, rows, dtype))
        preference, workspace = ctypes.c_void_p(), ctypes.c_uint64(WORKSPACE_BYTES)
        self._call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        self._call(
            "cublasLtMatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, ctypes.byref(workspace), _size(8)
        )
        found, count = (_Heuristic * most)(), ctypes.c_int()
        weight, x, y = layouts
        self._call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(self._handle, descriptor, weight, x, y, y, preference, most),
            *(found, ctypes.byref(count)),
        )
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        usable = (entry.algorithm for entry in found[: count.value] if entry.status == 0)
        return [Product(rows, n, k, descriptor, layouts, algorithm) for algorithm in usable]

    def configuration(self, product: Product) -> dict[str, int]:
        """The algorithm's attributes, numbers of the library's enumerations."""
        values = {}
        for number, (name, kind) in enumerate(_CONFIGURATION.items()):
            value = kind()
            self._call(
                "cublasLtMatmulAlgoConfigGetAttribute",
                *(ctypes.byref(product.algorithm), number, ctypes.byref(value), _size(ctypes.sizeof(value)), None),
            )
            values[name] = value.value
        return values

    def run(self, product: Product, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """Enqueue `out` = x Wᵀ on the current stream, or with `add` `out` += x Wᵀ, rounded once; all three
        contiguous."""
        weight_layout, x_layout, out_layout = product.layouts
        beta = self._one if add else self._zero
        self._call(
            "cublasLtMatmul",
            *(self._handle, product.descriptor, ctypes.byref(self._one)),
            *(_pointer(weight), weight_layout, _pointer(x), x_layout, ctypes.byref(beta)),
            *(_pointer(out), out_layout, _pointer(out), out_layout, ctypes.byref(product.algorithm)),
            *(_pointer(self._workspace), _size(WORKSPACE_BYTES)),
            ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream),
        )
        return out

    def _layout(self, rows: int, columns: int, dtype: torch.dtype) -> ctypes.c_void_p:
        """Of a matrix stored by columns."""
        layout = ctypes.c_void_p()
        self._call(
            "cublasLtMatrixLayoutCreate",
            *(ctypes.byref(layout), _TYPES[dtype], ctypes.c_uint64(rows), ctypes.c_uint64(columns)),
            ctypes.c_int64(rows),
        )
        return layout

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CublasError(f"{name} failed with cuBLAS status {status}")


def _size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
