"""torch's own 2:4 products in sparse tensor cores, for many inputs at once: by CUTLASS or by cuSPARSELt.

CUTLASS, which torch has for compute capability 8.x, keeps the same values in the same order, so that only its own form
of the bits is made (as large as ours, an eighth of the values in the 16-bit types). cuSPARSELt, for everything newer,
has values and positions in one piece of its own, another 56 % of the dense weight beside the packed form; so it is used
only where `EGGS_CUSPARSELT` allows it.
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

ALLOW = "EGGS_CUSPARSELT"
# Fewest inputs: reports on torch's kernels (pytorch/ao issue 1460) see nothing gained below some 1280 rows.
FEWEST = 1280
_STEP = {"CUTLASS": (32, 64), "cuSPARSELt": (16, 16)}  # what rows and columns must be multiples of
_QUADS = 4  # groups of four columns whose positions are one number of CUTLASS


def why_not(
    device: torch.device, dtype: torch.dtype, pattern: Pattern, rows: int, columns: int, batch: int
) -> str | None:
    """The reason for which this backend does not compute a product, or None."""
    if device.type != "cuda":
        return f"device {device.type}, for NVIDIA GPUs only"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"type {dtype}, for bfloat16 and float16"
    if (pattern.keep, pattern.group) != (2, 4):
        return f"pattern {pattern}, for 2:4"
    library = _library(device)
    if library not in _STEP:
        return library
    if rows % _STEP[library][0] or columns % _STEP[library][1]:
        return (
            f"{rows} x {columns}, for rows and columns that are multiples of {' and '.join(map(str, _STEP[library]))}"
        )
    if batch < FEWEST:
        return f"batch {batch}, faster from {FEWEST} on"
    if library == "cuSPARSELt" and os.environ.get(ALLOW, "") in ("", "0"):
        return f"cuSPARSELt keeps a copy of its own, 56 % of the dense weight; set {ALLOW}=1 where memory allows it"
    return None


@functools.cache
def _library(device: torch.device) -> str:
    """The library that torch has for this device, or one line that says why it has none."""
    if torch.version.hip is not None:
        return "this torch is for AMD, the kernels are NVIDIA's"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}, sparse tensor cores come with 8.0"
    if major == 8:
        return "CUTLASS"
    if not torch.backends.cusparselt.is_available():
        return f"this torch has no cuSPARSELt, which compute capability {major}.{minor} needs"
    return "cuSPARSELt"


def prepare(packed: Packed) -> Tensor:
    """The tensor that torch makes of a 2:4 matrix; with CUTLASS it shares the values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in prototype stage")  # said once a process
        if _library(packed.values.device) == "CUTLASS":
            return cutlass(packed)
        return torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(expand(packed))


def cutlass(packed: Packed) -> Tensor:
    """The matrix (rows, columns) as CUTLASS reads it: our values, and their positions in its order."""
    made: Any = torch.sparse.SparseSemiStructuredTensorCUTLASS
    tensor: Tensor = made(
        torch.Size((packed.rows, packed.columns)),
        packed=packed.values,
        meta=positions(packed),
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
    return tensor


def positions(packed: Packed) -> Tensor:
    """Where the kept values stand, (rows, columns / 16), int16, in the order in which CUTLASS reads them.

    A group has four bits: the place of its first value, and that of its second times four. Four groups are one number,
    the first one lowest.
    """
    from torch.sparse._semi_structured_conversions import _calculate_meta_reordering_scatter_offsets as place_of

    rows, width = packed.rows, packed.columns // (4 * _QUADS)
    codes = _codes().to(packed.bits.device)
    both = codes.index_select(0, packed.bits.reshape(-1).int()).view(rows, width, 2)
    words = (both[..., 0] | both[..., 1] << 8).to(torch.int16)
    out = torch.empty_like(words).view(-1)
    return out.scatter_(0, place_of(rows, width, torch.int16, packed.bits.device), words.view(-1)).view(rows, width)


@functools.cache
def _codes() -> Tensor:
    """For each byte of bits the four bits of its two groups: (256,), int32; zero where a group has not two."""
    half = [0] * 16
    for first in range(4):
        for second in range(first + 1, 4):
            half[1 << first | 1 << second] = first | second << 2
    return torch.tensor([half[byte & 15] | half[byte >> 4] << 4 for byte in range(256)], dtype=torch.int32)


def linear(x: Tensor, state: Tensor) -> Tensor:
    """Y = x W^T, (batch, rows), summed in float32 by sparse tensor cores.

    A pruned weight is skipped: where x is infinite or NaN, the product differs from the dense one's NaN.
    """
    return dense_linear(x, state).contiguous()


TORCH_CORE = Backend(
    "torch", "torch's sparse tensor cores, CUTLASS or cuSPARSELt: 2:4, for long prompts", why_not, prepare, linear
)
