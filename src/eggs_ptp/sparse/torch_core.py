"""The backend "torch": torch's 2:4 products in sparse tensor cores, by CUTLASS or cuSPARSELt, for large batches.

torch uses CUTLASS for compute capability 8.x. It stores the same values in the same order as a packed matrix, so only
the positions are converted: as large as the packed bits, an eighth of the values in the 16-bit types. For newer GPUs
torch has cuSPARSELt, which stores values and positions in one tensor of its own: another 56 % of the dense weight in
addition to the packed form. So it is used only if `EGGS_CUSPARSELT` allows it.
"""

import functools
import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import Packed, expand
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.backends import Backend

ALLOW_CUSPARSELT = "EGGS_CUSPARSELT"
# Fewest inputs: reports on torch's kernels (pytorch/ao issue 1460) see no gain below about 1280 rows.
MIN_BATCH = 1280
_MULTIPLES = {"CUTLASS": (32, 64), "cuSPARSELt": (16, 16)}  # of rows and columns
_GROUPS_PER_WORD = 4  # groups of four columns whose positions CUTLASS stores in one int16


def unsupported_reason(
    device: torch.device, dtype: torch.dtype, pattern: Pattern, rows: int, columns: int, batch: int
) -> str | None:
    """Return why this backend does not compute a product, or None."""
    if device.type != "cuda":
        return f"device {device.type}: supports NVIDIA GPUs only"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"type {dtype}: supports bfloat16 and float16"
    if (pattern.keep, pattern.group) != (2, 4):
        return f"pattern {pattern}: supports 2:4"
    library = _library(device)
    if library not in _MULTIPLES:
        return library
    row_multiple, column_multiple = _MULTIPLES[library]
    if rows % row_multiple or columns % column_multiple:
        return f"{rows} x {columns}: supports multiples of {row_multiple} rows and {column_multiple} columns"
    if batch < MIN_BATCH:
        return f"batch {batch}: faster from {MIN_BATCH} on"
    if library == "cuSPARSELt" and os.environ.get(ALLOW_CUSPARSELT, "") in ("", "0"):
        return (
            "cuSPARSELt keeps a copy of the matrix, 56 % of the dense weight; "
            f"set {ALLOW_CUSPARSELT}=1 if memory allows it"
        )
    return None


@functools.cache
def _library(device: torch.device) -> str:
    """Return the library that torch has for a device, or one line that says why it has none."""
    if torch.version.hip is not None:
        return "this torch was built for AMD GPUs, and the kernels are NVIDIA's"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}: sparse tensor cores need 8.0"
    if major == 8:
        return "CUTLASS"
    if not torch.backends.cusparselt.is_available():
        return f"this torch has no cuSPARSELt, which compute capability {major}.{minor} needs"
    return "cuSPARSELt"


def prepare(packed: Packed) -> Tensor:
    """Return torch's tensor of a 2:4 matrix; with CUTLASS it shares the packed values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in prototype stage")  # torch warns once per process
        if _library(packed.values.device) == "CUTLASS":
            return cutlass_tensor(packed)
        return torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(expand(packed))


def cutlass_tensor(packed: Packed) -> Tensor:
    """Return the matrix (rows, columns) as CUTLASS reads it: the packed values, and positions in its order."""
    tensor_class: Any = torch.sparse.SparseSemiStructuredTensorCUTLASS
    tensor: Tensor = tensor_class(
        torch.Size((packed.rows, packed.columns)),
        packed=packed.values,
        meta=cutlass_positions(packed),
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
    return tensor


def cutlass_positions(packed: Packed) -> Tensor:
    """Return the positions of the kept values, (rows, columns / 16), int16, in the order in which CUTLASS reads them.

    A group has four bits: the column of its first value within the group, plus four times that of its second value.
    Four groups make one int16, the first group in the lowest bits.
    """
    from torch.sparse._semi_structured_conversions import _calculate_meta_reordering_scatter_offsets as scatter_offsets

    rows = packed.rows
    width = packed.columns // (4 * _GROUPS_PER_WORD)
    codes = _codes().to(packed.bits.device)
    byte_codes = codes.index_select(0, packed.bits.reshape(-1).int()).view(rows, width, 2)
    words = (byte_codes[..., 0] | byte_codes[..., 1] << 8).to(torch.int16)
    out = torch.empty_like(words).view(-1)
    offsets = scatter_offsets(rows, width, torch.int16, packed.bits.device)
    return out.scatter_(0, offsets, words.view(-1)).view(rows, width)


@functools.cache
def _codes() -> Tensor:
    """Return the eight bits of the two groups of each byte of packed bits: (256,), int32.

    Zero for a group that does not have two bits set.
    """
    group_codes = [0] * 16
    for first in range(4):
        for second in range(first + 1, 4):
            group_codes[1 << first | 1 << second] = first | second << 2
    byte_codes = [group_codes[byte & 15] | group_codes[byte >> 4] << 4 for byte in range(256)]
    return torch.tensor(byte_codes, dtype=torch.int32)


def linear(x: Tensor, state: Tensor) -> Tensor:
    """Compute y = x W^T, (batch, rows), summed in float32 by sparse tensor cores.

    Pruned weights are skipped: where x is infinite or NaN, the result differs from the dense product, which is NaN.
    """
    return dense_linear(x, state).contiguous()


TORCH_CORE = Backend(
    name="torch",
    description="torch's sparse tensor cores, CUTLASS or cuSPARSELt: 2:4, for long prompts",
    unsupported_reason=unsupported_reason,
    prepare=prepare,
    linear=linear,
    priority=200,
)
