"""The packed format, weight by weight as docs/format.md describes it, and matrices to pack."""

import math

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern


def packed_rows(weight: list[list[float]], keep: int, group: int) -> tuple[list[list[float]], list[list[int]]]:
    """Values and bytes of each row."""
    values, bits = [], []
    for row in weight:
        kept: list[int] = []
        for start in range(0, len(row), group):
            columns = range(start, start + group)
            chosen = [c for c in columns if row[c] != 0]
            zeros = [c for c in columns if row[c] == 0]
            zeros.sort(key=lambda c: math.copysign(1, row[c]))  # negative ones first, otherwise by column
            kept += sorted(chosen + zeros[: keep - len(chosen)])
        values.append([row[c] for c in kept])
        bits.append([sum(1 << (c % 8) for c in kept if c // 8 == byte) for byte in range(math.ceil(len(row) / 8))])
    return values, bits


def nm_matrix(
    rows: int, columns: int, pattern: Pattern, dtype: torch.dtype = torch.float32, seed: int = 0, zeros: float = 0.0
) -> Tensor:
    """A random N:M matrix; the share `zeros` of its kept weights is zero, half of them negative."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = keep_top(torch.rand(rows, columns, generator=generator), pattern)
    zeroed = torch.rand(rows, columns, generator=generator) < zeros
    weight[zeroed] = torch.copysign(torch.zeros(()), weight[zeroed])
    return torch.where(mask, weight, 0.0).to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal type, shape and bits: -0.0 is not 0.0, and NaN is NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
